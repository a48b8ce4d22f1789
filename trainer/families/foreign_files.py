"""Files that are no base model of Stable Diffusion, told by their tensors' names and refused by their own name."""

import re
from collections.abc import Mapping
from typing import Final

from trainer.core.errors import WeightsError
from trainer.core.tensors import Header

_ADAPTER: Final = re.compile(
    r"\.(?:lora_(?:down|up|A|B)\b.*|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|lora\.(?:down|up)\..*)$"
)
_QUANTISED: Final = re.compile(
    r"(?:^|\.)scaled_fp8$|\.(?:scale_weight|weight_scale|absmax|quant_map|qweight|comfy_quant)$"
)

# the beginning of a key, behind `model.diffusion_model.` where a file has that -> whose it is
_FAMILIES: Final[Mapping[str, str]] = {
    "double_blocks.": "Flux, or a model built like it",
    "single_stream_modulation.": "Flux 2",
    "joint_blocks.": "Stable Diffusion 3",
    "double_layers.": "AuraFlow",
    "patchify_proj.": "LTX-Video",
    "cap_embedder.": "Lumina 2",
    "caption_projection.": "PixArt or HiDream",
    "clip_txt_mapper.": "Stable Cascade",
    "txt_in.": "Qwen-Image, or a model built like it",
    "head.modulation": "Wan",
    "input_hint_block.": "a ControlNet",
    "control_model.": "a ControlNet",
}
# what stands for a part alone
_PARTS: Final[Mapping[str, str]] = {
    "down_blocks.": "a U-Net alone, in diffusers' names",
    "first_stage_model.": "an autoencoder alone",
    "decoder.": "an autoencoder alone",
    "encoder.": "an autoencoder or a text encoder alone",
    "text_model.": "a text encoder alone",
    "cond_stage_model.": "a text encoder alone",
    "conditioner.": "a text encoder alone",
}
_UNET: Final = "model.diffusion_model."


def refuse_foreign(header: Header, where: str) -> None:
    """Make sure that a file holds a U-Net in the original layout, and nothing that would be lost on the way.

    Raises:
        WeightsError: it is an adapter, a part alone, quantised, a model of another family, or unknown.
    """
    names = list(header.tensors)
    if any(_ADAPTER.search(name) for name in names):
        raise WeightsError(
            "This file is an adapter (a LoRA or one of its kind), not a base model.",
            where=where,
            mend="Name the base model that it was trained on in model.weights.",
        )
    if {"emb_params", "clip_l", "clip_g"} & set(names):
        raise WeightsError("This file is a textual inversion, not a base model.", where=where, mend=_MEND)
    if any(_QUANTISED.search(name) for name in names):
        raise WeightsError(
            "The weights of this file are quantised.",
            where=where,
            mend="Get the version of this model in float32, float16 or bfloat16.",
        )
    if "edm_mean" in names or "edm_vpred.sigma_max" in names:
        raise WeightsError(
            "This checkpoint was trained with EDM's noise (as Playground 2.5 and CosXL), which is not supported.",
            where=where,
            mend=_MEND,
        )
    if f"{_UNET}input_blocks.0.0.weight" not in names:
        raise WeightsError(f"This file is {_kind(names)}, not a Stable Diffusion.", where=where, mend=_MEND)


_MEND: Final = "Name a checkpoint of Stable Diffusion 1.x, 2.x or XL, with all its parts."


def _kind(names: list[str]) -> str:
    for beginnings, prefix in ((_FAMILIES, _UNET), (_FAMILIES, ""), (_PARTS, "")):
        for beginning, kind in beginnings.items():
            if any(name.startswith(prefix + beginning) for name in names):
                return kind
    return "of an unknown kind"
