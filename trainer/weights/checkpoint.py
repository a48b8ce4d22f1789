"""A whole model out: as one checkpoint in the original layout, or as a folder in the diffusers layout.

Tensors are made and written one by one, so that beside the model itself hardly any memory is needed.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import flush_to_disk, write_atomically
from trainer.core.tensor_files import planned, write_tensor_file
from trainer.core.tensors import TensorFacts
from trainer.weights.checkpoint_metadata import CONFIGS_KEY, as_text, published
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import PARTS, Part, places_of, prefix_of
from trainer.weights.places import STACKED, Place

_TOKENS: Final = 49408  # of CLIP's vocabulary, which every program has for single files
_LOGIT_SCALE: Final = 4.6052  # ln 100, where CLIP's training ends; no program uses it to draw
_CLASSES: Final[Mapping[str, tuple[str, str]]] = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}


def write_checkpoint(
    path: Path,
    family: KnownFamily,
    parts: Mapping[Part, Mapping[str, Tensor]],
    configs: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, str],
    dtype: torch.dtype,
) -> None:
    """Write a model as one file that A1111, ComfyUI, Forge, sd-scripts and diffusers load.

    The header also holds the configurations, so that `SingleFile` reads the very same model back, of whatever size.

    Args:
        path: of the .safetensors file.
        family: of the model.
        parts: the state of each network, by the names of diffusers and transformers (with `text_model.` or without);
            a tensor is asked for once or twice, so a mapping may make them as they are asked for.
        configs: of each network and of the `scheduler`.
        metadata: more text for the header.
        dtype: of the file.

    Raises:
        WeightsError: a network or a tensor is missing or of another shape, the vocabulary is not CLIP's, or what can
            be read back differs.
        NonFiniteError: a weight is NaN or infinite, or too large for `dtype`.
    """
    _check_vocabulary(family, configs)
    sources: dict[str, _Source] = {}
    for part in PARTS[family]:
        state = _State(part, parts)
        for place in places_of(family, part, configs[part]):
            sources.setdefault(prefix_of(family, part) + place.key, _Source(state, place)).places.append(place)
    extra = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in _extra(family, configs)}
    plan = {key: planned(dtype, source.shape) for key, source in sources.items()}
    plan |= {key: planned(tensor.dtype, tensor.shape) for key, tensor in extra.items()}
    doubles = _doubles(family, configs)
    plan |= {key: plan[original] for key, original in doubles.items()}

    def tensor_of(key: str) -> Tensor:
        key = doubles.get(key, key)
        return extra[key] if key in extra else sources[key].tensor(dtype)

    write_tensor_file(path, plan, tensor_of, {"format": "pt", **metadata, CONFIGS_KEY: as_text(configs)})


def write_folder(
    folder: Path,
    family: KnownFamily,
    parts: Mapping[Part, Mapping[str, Tensor]],
    configs: Mapping[str, Mapping[str, Any]],
    tokenizers: Mapping[str, Path],
    dtype: torch.dtype,
) -> None:
    """Write a model as a folder in the diffusers layout. The folder appears when all of it is written.

    Args:
        folder: must not exist.
        family: of the model.
        parts: as for `write_checkpoint`.
        configs: of each network and of the `scheduler`.
        tokenizers: `tokenizer`, and for SDXL `tokenizer_2`: the folder of its files.
        dtype: of the files.

    Raises:
        WeightsError: the folder exists; or as of `write_checkpoint`.
        NonFiniteError: a weight is NaN or infinite, or too large for `dtype`.
    """
    if folder.exists():
        raise WeightsError("There is something of this name already.", where=str(folder), mend="Choose another name.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for part in PARTS[family]:
            _write_part(unfinished / part, family, _State(part, parts), configs[part], dtype)
        for name, source in tokenizers.items():
            for file in sorted(source.iterdir()):
                if file.suffix in {".json", ".txt"}:
                    write_atomically(unfinished / name / file.name, file.read_bytes())
        write_atomically(unfinished / "scheduler" / "scheduler_config.json", _as_json(configs["scheduler"]))
        write_atomically(unfinished / "model_index.json", _as_json(_index(family, configs, tokenizers)))
        unfinished.replace(folder)
        flush_to_disk(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _State:
    """The tensors of one network, by canonical names."""

    def __init__(self, part: Part, parts: Mapping[Part, Mapping[str, Tensor]]) -> None:
        if part not in parts:
            raise WeightsError(f"A model needs its {part} to be written.", mend="Give every network of the family.")
        self.part: Part = part
        self._state = parts[part]

    def tensor(self, place: Place, dtype: torch.dtype) -> Tensor:
        """The tensor of a place, in `dtype` on the CPU."""
        name = place.name if place.name in self._state else place.name.removeprefix("text_model.")
        if name not in self._state:
            raise WeightsError(f"The {self.part} lacks the weight {place.name}.", mend="Give the whole network.")
        tensor = self._state[name].detach().to("cpu", dtype)
        if tuple(tensor.shape) != place.shape:
            raise WeightsError(
                f"{place.name} of the {self.part} is {list(tensor.shape)}, and should be {list(place.shape)}.",
                mend="Give the network's own configuration.",
            )
        return tensor


class _Source:
    """One tensor of a checkpoint: out of one of ours, or out of three."""

    def __init__(self, state: _State, first: Place) -> None:
        self.shape = first.original_shape
        self.places: list[Place] = []
        self._state = state

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The tensor in the original's form."""
        if self.places[0].form in STACKED:
            inner = sorted(self.places, key=lambda place: STACKED.index(place.form))
            return torch.cat([self._state.tensor(place, dtype) for place in inner])
        tensor = self._state.tensor(self.places[0], dtype)
        return tensor.t() if self.places[0].form == "transposed" else tensor.reshape(self.shape)


def _extra(family: KnownFamily, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """What this layout holds beside the networks: what the first authors' classes have, and markers."""
    for part in PARTS[family][2:]:
        prefix, config = prefix_of(family, part), configs[part]
        if part == "text_encoder" and family != "sd2":  # programs with older transformers ask for it
            places = torch.arange(int(config["max_position_embeddings"])).unsqueeze(0)
            yield f"{prefix}text_model.embeddings.position_ids", places
            continue
        yield f"{prefix}logit_scale", torch.tensor(_LOGIT_SCALE)
        if family == "sd2":  # its projection is lost in the diffusers layout; one that changes nothing stands for it
            yield f"{prefix}text_projection", torch.eye(int(config["hidden_size"]))
    # empty tensors by whose names programs know what an SDXL predicts, and that its last step is pure noise
    scheduler = configs.get("scheduler", {})
    if scheduler.get("prediction_type") == "v_prediction":
        yield "v_pred", torch.empty(0)
        if scheduler.get("rescale_betas_zero_snr"):
            yield "ztsnr", torch.empty(0)


def _doubles(family: KnownFamily, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The keys of SD2's last text layer, which its U-Net was never shown -> those of the layer that stands for it."""
    if family != "sd2":
        return {}
    prefix, layers = prefix_of("sd2", "text_encoder"), int(configs["text_encoder"]["num_hidden_layers"])
    here, there = f"transformer.resblocks.{layers - 1}.", f"transformer.resblocks.{layers}."
    keys = {place.key for place in places_of("sd2", "text_encoder", configs["text_encoder"])}
    return {prefix + key.replace(here, there): prefix + key for key in keys if key.startswith(here)}


def _check_vocabulary(family: KnownFamily, configs: Mapping[str, Mapping[str, Any]]) -> None:
    for part in PARTS[family]:
        words = int(configs[part].get("vocab_size", _TOKENS))
        if words < _TOKENS:
            raise WeightsError(
                f"The {part} of this model knows {words} tokens. A single file carries no tokenizer, and programs that "
                f"read one use CLIP's, of {_TOKENS}.",
                mend="Write this model as a folder in the diffusers layout.",
            )


def _write_part(
    folder: Path, family: KnownFamily, state: _State, config: Mapping[str, Any], dtype: torch.dtype
) -> None:
    part = state.part
    places = {place.name: place for place in places_of(family, part, config)}
    plan: dict[str, TensorFacts] = {name: planned(dtype, place.shape) for name, place in places.items()}
    library, kind = _CLASSES[part]
    text = library == "transformers"
    name = "model.safetensors" if text else "diffusion_pytorch_model.safetensors"
    write_tensor_file(folder / name, plan, lambda name: state.tensor(places[name], dtype), {"format": "pt"})
    kinds = {"architectures": [kind], "model_type": "clip_text_model"} if text else {"_class_name": kind}
    write_atomically(folder / "config.json", _as_json({**config, **kinds}))


def _index(
    family: KnownFamily, configs: Mapping[str, Mapping[str, Any]], tokenizers: Mapping[str, Path]
) -> dict[str, Any]:
    """The content of model_index.json: which class each sub-folder is of."""
    names = [*PARTS[family], *tokenizers]
    index: dict[str, Any] = {name: list(_CLASSES[name]) for name in names}
    index["scheduler"] = ["diffusers", str(configs["scheduler"].get("_class_name", "DDIMScheduler"))]
    if family == "sdxl":
        return {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **index}
    absent = {name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker")}
    return {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **absent, **index}


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(published(content), indent=2) + "\n"
