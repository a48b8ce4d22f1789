"""Feature spaces out of networks whose weights a person has: CLIP and DINOv2, through transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from typing_extensions import override

from trainer.core.errors import WeightsError
from trainer.evaluation.features import BuiltIn, Encode, Features, Read, Rows

_AT_ONCE: Final = 16
_CLIP: Final = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # mean and deviation
_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SIDE: Final = 224  # pixels, where the folder does not say


class _OfFolder(Features):
    """A space whose network's weights a person has."""

    folder: Path
    """The weights in transformers' layout."""

    @property
    @override
    def weights_name(self) -> str | None:
        return self.folder.name


class Clip(_OfFolder):
    """CLIP's common space of pictures and texts. Source: Radford et al. 2021, arXiv:2103.00020."""

    @property
    @override
    def name(self) -> str:
        return "clip"

    @property
    @override
    def title(self) -> str:
        return f"CLIP ({self.folder.name})"

    @override
    def load(self) -> Encode:
        model = _model(self.folder)

        def look(pixels: Any) -> Any:
            return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

        return _encoder(self.folder, model, look, _CLIP)

    @override
    def reader(self) -> Read | None:
        return _reader(self.folder)


class Dinov2(_OfFolder):
    """DINOv2's space of pictures. Source: Oquab et al. 2023, arXiv:2304.07193."""

    @property
    @override
    def name(self) -> str:
        return "dinov2"

    @property
    @override
    def title(self) -> str:
        return f"DINOv2 ({self.folder.name})"

    @override
    def load(self) -> Encode:
        model = _model(self.folder)

        def look(pixels: Any) -> Any:
            return model(pixel_values=pixels).pooler_output

        return _encoder(self.folder, model, look, _IMAGENET)


def features_in(folder: Path | None) -> Features:
    """The feature space whose weights lie in `folder`; without one the built-in space.

    Raises:
        WeightsError: there is no CLIP and no DINOv2 in the folder.
    """
    if folder is None:
        return BuiltIn()
    path = folder.expanduser()
    kind = str(_read(path / "config.json").get("model_type"))
    if kind == "clip":
        return Clip(folder=path)
    if kind == "dinov2":
        return Dinov2(folder=path)
    raise WeightsError(
        "These are no weights of CLIP or DINOv2.",
        where=str(folder),
        mend="Name a folder in transformers' layout, with config.json and model.safetensors in it.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise WeightsError("This file is no JSON.", where=str(path)) from error


def _model(folder: Path) -> Any:  # transformers' models share no type that says what they return
    from transformers import AutoModel

    from trainer.core.device import pick_device

    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except OSError as error:
        raise WeightsError(
            "The weights of the feature space cannot be loaded.",
            where=str(folder),
            mend="model.safetensors must lie there; other formats are not opened.",
        ) from error
    return model.to(pick_device()).eval()


def _encoder(folder: Path, model: Any, look: Any, usual: tuple[tuple[float, ...], tuple[float, ...]]) -> Encode:
    """The function from pictures to features: they are scaled, cut to a square and normalised as the folder says."""
    import torch

    said = _read(folder / "preprocessor_config.json")
    side = int((said.get("crop_size") or {}).get("height") or _SIDE)
    mean, deviation = (np.array(said.get(key) or fallback, np.float32) for key, fallback in _normal(usual))
    width = int(look(torch.zeros(1, 3, side, side, device=model.device)).shape[-1])

    def encode(pictures: Sequence[Image.Image]) -> Rows:
        rows: list[Rows] = [np.zeros((0, width), np.float32)]
        for start in range(0, len(pictures), _AT_ONCE):
            squares = [_square(picture, side) for picture in pictures[start : start + _AT_ONCE]]
            pixels = torch.from_numpy(((np.stack(squares) - mean) / deviation).transpose(0, 3, 1, 2))
            with torch.inference_mode():
                rows.append(look(pixels.to(model.device)).float().cpu().numpy())
        return np.concatenate(rows)

    return encode


def _normal(usual: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("image_mean", usual[0]), ("image_std", usual[1])


def _reader(folder: Path) -> Read:
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = _model(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def read(texts: Sequence[str]) -> Rows:
        tokens: Any = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            return model.text_projection(model.text_model(**tokens).pooler_output).float().cpu().numpy()

    return read


def _square(picture: Image.Image, side: int) -> Rows:
    """[side side 3] in 0 .. 1: the middle of the picture; transparent parts are white."""
    opaque = picture.convert("RGBA")
    plain = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    scale = side / min(plain.size)
    grown = plain.resize(
        (max(side, round(plain.width * scale)), max(side, round(plain.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (grown.width - side) // 2, (grown.height - side) // 2
    return np.asarray(np.asarray(grown.crop((left, top, left + side, top + side))) / 255, np.float32)
