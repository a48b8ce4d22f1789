"""Which kind of file, and of which family, a safetensors header tells of."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainer.core.tensors import Header, TensorFacts
from trainer.weights.roles import ALPHA, DOWN, SCALE, VECTOR, split_key

Kind = Literal[
    "lora", "dora", "loha", "lokr", "textual inversion", "checkpoint", "unet", "vae", "text encoder", "unknown"
]  # fmt: skip

PARTS = ("unet", "text_encoder", "text_encoder_2")
"""The networks that an adapter may change."""
# A module's part by the beginning of its name; the first that fits counts.
_PARTS = {
    "lora_unet_": "unet",
    "lycoris_te2_": "text_encoder_2",
    "lycoris_te": "text_encoder",
    "lycoris_": "unet",
    "unet.": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
_CHECKPOINT_PARTS = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "conditioner.embedders.1.": "text_encoder_2",
    "conditioner.embedders.0.": "text_encoder",
    "cond_stage_model.": "text_encoder",
}
_XL_SIGNS = re.compile(
    r"(?:lora|lycoris)_te2_|text_encoder_2\.|conditioner\.embedders\.1\.|add_embedding\.|clip_[lg]$"
    r"|lora_unet_(?:input|middle|output)_block"
    r"|.*attentions[._]\d+[._]transformer_blocks[._][1-9]"  # the others have one transformer at each place
)
_CONTEXT_LAYER = re.compile(r"attn2[._]to_[kv]$")
_CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # what the U-Net's cross-attention reads
_TEXT_LAYER = re.compile(r"layers[._]\d+[._](?:self_attn[._][qkv]_proj|mlp[._]fc1)$")
_TEXT_WIDTHS = {768: "sd1", 1024: "sd2"}  # of the text encoder; SDXL's two are told by their names


@dataclass(slots=True)
class AdapterModule:
    """The tensors that change one layer."""

    name: str
    part: str
    tensors: dict[str, str] = field(default_factory=dict[str, str])  # role -> key in the file


def adapter_modules(names: list[str]) -> dict[str, AdapterModule]:
    """The layers that an adapter file changes, by their names in the file; empty where it is no adapter."""
    modules: dict[str, AdapterModule] = {}
    for key in names:
        split = split_key(key)
        if split is not None:
            name, role = split
            modules.setdefault(name, AdapterModule(name=name, part=part_of(name))).tensors[role] = key
    return modules


def part_of(name: str) -> str:
    """The network that a module belongs to."""
    for beginning, part in _PARTS.items():
        if name.startswith(beginning):
            return part
    return "text_encoder" if re.search(r"encoder\.layers\.\d", name) else "unet"


def parts_of(header: Header, kind: Kind) -> dict[str, list[TensorFacts]]:
    """The tensors of a file that is no adapter, by the network they belong to."""
    if kind != "checkpoint":
        return {kind.replace(" ", "_"): list(header.tensors.values())}
    parts: dict[str, list[TensorFacts]] = {}
    for name, facts in header.tensors.items():
        part = next((part for beginning, part in _CHECKPOINT_PARTS.items() if name.startswith(beginning)), "other")
        parts.setdefault(part, []).append(facts)
    return parts


def kind_of(names: list[str]) -> Kind:
    """What a file is, by the names of its tensors."""
    roles = {role for module in adapter_modules(names).values() for role in module.tensors}
    if roles - {ALPHA}:
        return _adapter_kind(roles)
    if "emb_params" in names or {"clip_l", "clip_g"} & set(names) or (len(names) == 1 and "." not in names[0]):
        return "textual inversion"
    signs: dict[str, Kind] = {
        "model.diffusion_model.": "checkpoint",
        "down_blocks.": "unet",
        "decoder.": "vae",
        "text_model.": "text encoder",
        "encoder.layers.": "text encoder",
    }
    for sign, kind in signs.items():
        if any(name.startswith(sign) for name in names):
            return kind
    return "unknown"


def family_of(header: Header, kind: Kind) -> str:
    """`sd1`, `sd2` or `sdxl`, with "(custom size)" where the widths are none that was published; or `unknown`."""
    names = list(header.tensors)
    width = _context_width(header)
    if any(_XL_SIGNS.match(name) for name in names):
        return "sdxl" if width in {None, 2048} else "sdxl (custom size)"
    if kind == "textual inversion":
        shapes = [facts.shape for facts in header.tensors.values() if facts.shape]
        return _TEXT_WIDTHS.get(shapes[0][-1] if shapes else 0) or _custom(said_family(header.metadata))
    if width in _CONTEXT_WIDTHS:
        return _CONTEXT_WIDTHS[width]
    structure = said_family(header.metadata) or _family_by_projection(header)
    if width is not None:
        return _custom(structure)
    return structure or _family_by_text(header) or "unknown"


def said_family(metadata: Mapping[str, str]) -> str | None:
    """The family that the metadata claim."""
    said = metadata.get("ss_base_model_version", "") or metadata.get("modelspec.architecture", "")
    for family, signs in {"sdxl": ("sdxl", "stable-diffusion-xl"), "sd2": ("sd_v2", "stable-diffusion-v2")}.items():
        if said.startswith(signs):
            return family
    return "sd1" if said.startswith(("sd_v1", "stable-diffusion-v1")) else None


def rank_of(module: AdapterModule, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank of one layer; None where a factor is whole, or there is nothing to tell it by."""
    for role in (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        shape = shapes.get(module.tensors.get(role, ""), ())
        if shape:
            return shape[0]
    return None


def _adapter_kind(roles: set[str]) -> Kind:
    if roles & {SCALE, VECTOR}:
        return "dora"
    if any(role.startswith("hada") for role in roles):
        return "loha"
    if any(role.startswith("lokr") for role in roles):
        return "lokr"
    return "lora"


def _context_width(header: Header) -> int | None:
    """The width of the text states that the file's cross-attention reads; None where it has none."""
    shapes = {name: facts.shape for name, facts in header.tensors.items()}
    for module in adapter_modules(list(shapes)).values():
        if _CONTEXT_LAYER.search(module.name) and (width := _inputs(module, shapes)) is not None:
            return width
    for name, shape in shapes.items():
        if _CONTEXT_LAYER.search(name.removesuffix(".weight")) and len(shape) == 2:
            return shape[1]
    return None


def _inputs(module: AdapterModule, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The inputs of a linear layer; None where its tensors do not tell."""
    of = {role: shapes[key] for role, key in module.tensors.items()}
    for role in (DOWN, "hada_w1_b"):
        if len(of.get(role, ())) > 1:
            return of[role][1]
    # kron(w1, w2) is as wide as both together
    factors = [of.get(w) or of.get(f"{w}_b", ()) for w in ("lokr_w1", "lokr_w2")]
    return math.prod(shape[1] for shape in factors) if all(len(shape) > 1 for shape in factors) else None


def _custom(family: str | None) -> str:
    return "unknown" if family is None else f"{family} (custom size)"


def _family_by_text(header: Header) -> str | None:
    """By the width of a text encoder; where it is called the first of two, it is SDXL's."""
    shapes = {name: facts.shape for name, facts in header.tensors.items()}
    for module in adapter_modules(list(shapes)).values():
        if _TEXT_LAYER.search(module.name):
            first = module.name.startswith(("lora_te1_", "lycoris_te1_"))
            return "sdxl" if first else _TEXT_WIDTHS.get(_inputs(module, shapes) or 0)
    return None


def _family_by_projection(header: Header) -> str | None:
    """SD1's transformers begin with a 1x1 convolution, SD2's with a linear layer."""
    for name, facts in header.tensors.items():
        if "proj_in" in name and name.endswith(".weight") and facts.shape:
            return "sd1" if len(facts.shape) == 4 else "sd2"
    return None
