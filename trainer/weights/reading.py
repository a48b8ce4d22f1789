"""A LoRA file from anywhere -> our state, after a strict check of its content."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import printable
from trainer.core.tensors import first_non_finite, read_header, read_tensors
from trainer.weights.lora_state import DOWN, UP, LoraState
from trainer.weights.names import Naming

Layout = Literal["kohya", "diffusers", "peft"]

_PEFT = "base_model.model."
_ENDINGS = {
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,  # diffusers of early 2023: `attn1.processor.to_q_lora.down.weight`
    "_lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".alpha": ".alpha",
}


@dataclass(frozen=True, slots=True)
class LoraFile:
    """What a LoRA file holds."""

    state: LoraState  # in the file's number formats
    layout: Layout
    metadata: Mapping[str, str]


def read_lora(path: Path, naming: Naming) -> LoraFile:
    """Read a LoRA in kohya's, diffusers' or peft's layout; trust nothing in it.

    Args:
        path: a .safetensors file; beside peft's adapter_model.safetensors its adapter_config.json is read for alpha.
        naming: of the family that the LoRA is for.

    Raises:
        WeightsError: it is no whole safetensors file; a key is unknown to the family, a half is missing, shapes do
            not fit, numbers are no floats or not finite, or a rank is greater than its layer. The message names the
            key.
    """
    file = read_tensors(path)
    metadata = read_header(path).metadata
    if not file:
        raise WeightsError("This file holds no tensors.", where=str(path))
    broken = first_non_finite(file)
    if broken is not None:
        raise WeightsError("This file holds weights that are not finite.", where=f"{path}: {printable(broken[:200])}")
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    layouts: set[Layout] = set()
    for key, tensor in file.items():
        layer, ending, layout = _understood(key, naming)
        layouts.add(layout)
        if layer + ending in tensors or (ending == ".alpha" and layer in alphas):
            raise WeightsError("Two keys of this file mean the same layer.", where=printable(key[:200]))
        if ending == ".alpha":
            alphas[layer] = _alpha(key, tensor)
        else:
            tensors[layer + ending] = tensor
    layout: Layout = layouts.pop() if len(layouts) == 1 else "kohya"
    state = LoraState(tensors=tensors, alphas=_all_alphas(tensors, alphas, _said_alphas(path, layout, metadata)))
    state.check()
    _check_ranks(state)
    return LoraFile(state=state, layout=layout, metadata=metadata)


def _understood(key: str, naming: Naming) -> tuple[str, str, Layout]:
    """The canonical layer, the ending in our names, and the layout that a key is written in."""
    ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
    if ending is None:
        raise WeightsError("This key belongs to no LoRA.", where=printable(key[:200]))
    name = key.removesuffix(ending)
    if name.startswith(_PEFT):
        return _in_some_part(name.removeprefix(_PEFT), naming), _ENDINGS[ending], "peft"
    if name.split(".")[0] in naming.parts:
        name = re.sub(r"\.to_out$", ".to_out.0", name.replace(".processor.", "."))
        return naming.canonical(name), _ENDINGS[ending], "diffusers"
    return naming.from_kohya(name), _ENDINGS[ending], "kohya"


def _in_some_part(path: str, naming: Naming) -> str:
    """The layer of a path that does not say which network it is of, as in peft's own files."""
    for part, names in naming.parts.items():
        if names.layers.fullmatch(path) or names.layers.fullmatch(f"text_model.{path}"):
            return naming.canonical(f"{part}.{path}")
    raise WeightsError("This family has no such layer.", where=printable(path[:200]))


def _alpha(key: str, tensor: Tensor) -> float:
    """The number in an alpha tensor; some tools write an integer, which is as good."""
    value = float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else math.nan
    if not math.isfinite(value):
        raise WeightsError("An alpha must be one finite number.", where=printable(key[:200]))
    return value


def _all_alphas(tensors: Mapping[str, Tensor], found: Mapping[str, float], said: "_Said") -> dict[str, float]:
    """The alpha of every layer: as its tensor says, else as the configuration says, else its rank."""
    alphas = dict(found)
    for name, tensor in tensors.items():
        layer = name.removesuffix(DOWN)
        if name.endswith(DOWN) and layer not in alphas and tensor.ndim:
            alphas[layer] = said.alpha(layer, tensor.shape[0])
    return alphas


@dataclass(frozen=True, slots=True)
class _Said:
    """What peft configurations say of alpha, by part; the part is empty where the file has one network only."""

    configurations: Mapping[str, Mapping[str, Any]]  # Any: JSON from outside, checked where it is used

    def alpha(self, layer: str, rank: int) -> float:
        part, _, path = layer.partition(".")
        configuration = self.configurations.get(part, self.configurations.get("", {}))
        value = configuration.get("lora_alpha", rank)
        patterns = configuration.get("alpha_pattern")
        for pattern, special in patterns.items() if isinstance(patterns, dict) else ():
            if _means(str(pattern), path):
                value = special
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise WeightsError("The configuration beside these weights gives an alpha that is no number.", where=layer)
        # rank-stabilised scaling, arXiv:2312.03732, divides by the root of the rank; in our terms alpha is greater
        return float(value) * (math.sqrt(rank) if configuration.get("use_rslora") else 1.0)


def _means(pattern: str, path: str) -> bool:
    """Whether a peft pattern means a path. Plain names only: a foreign file's regular expressions are never run."""
    name = pattern.replace("\\.", ".").removeprefix("^").removesuffix("$")
    if not re.fullmatch(r"[\w.]+", name):
        raise WeightsError("The alpha pattern of this file is no plain name.", where=printable(pattern[:200]))
    return path == name or (path.endswith(f".{name}") and not pattern.startswith("^"))


def _said_alphas(path: Path, layout: Layout, metadata: Mapping[str, str]) -> _Said:
    """The configurations that diffusers keeps in the header and peft beside the file."""
    beside = path.with_name("adapter_config.json")
    if layout == "diffusers" and "lora_adapter_metadata" in metadata:
        configurations: dict[str, dict[str, Any]] = {}
        for key, value in _json_object(metadata["lora_adapter_metadata"], path).items():
            part, _, word = key.partition(".")
            configurations.setdefault(part, {})[word] = value
        return _Said(configurations)
    if layout == "peft" and beside.is_file():
        return _Said({"": _json_object(beside.read_text(encoding="utf-8", errors="replace"), beside)})
    return _Said({})


def _json_object(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError("The LoRA configuration of this file is no JSON.", where=str(path)) from error
    if not isinstance(value, dict):
        raise WeightsError("The LoRA configuration of this file is no JSON object.", where=str(path))
    return value  # pyright: ignore[reportUnknownVariableType]


def _check_ranks(state: LoraState) -> None:
    """A rank above the layer's own size adds nothing: such a file is broken or hostile."""
    for layer in state.layers():
        down, up = state.down(layer), state.up(layer)
        most = min(up.shape[0], math.prod(down.shape[1:]))
        if down.shape[0] > most:
            raise WeightsError(f"A LoRA of rank {down.shape[0]} on a layer of rank {most}.", where=layer)
