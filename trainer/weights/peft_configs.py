"""The configurations with which peft builds the layers that an adapter's tensors go into."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from trainer.core.errors import WeightsError
from trainer.weights.adapter_kinds import DoraState
from trainer.weights.adapter_state import AdapterState
from trainer.weights.forms import Roles
from trainer.weights.lora_state import LoraState

PEFT_PREFIX = "base_model.model."
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"


def lora_config(state: AdapterState, part: str) -> dict[str, Any]:
    """What peft's LoraConfig needs to hold the layers of one network, each with its own rank and alpha.

    Only words that peft has had for years, so that older programs understand it.

    Raises:
        WeightsError: peft cannot say this adapter.
    """
    layers = _layers(state, part)
    if isinstance(state, DoraState):
        _check_rows(state, layers)
    elif not isinstance(state, LoraState):
        raise WeightsError(f"A LoRA's configuration cannot say a {state.kind}.")
    ranks = {layer: int(state.rank(layer) or 0) for layer in layers}
    config = _numbers(part, ranks, {layer: alpha_of(state.alphas[layer]) for layer in layers}, "lora_alpha")
    return config | {"use_dora": isinstance(state, DoraState)}


def peft_config(state: AdapterState, part: str) -> dict[str, Any]:
    """What adapter_config.json says of one network's adapter, of any kind that peft has.

    Raises:
        WeightsError: peft cannot say this adapter.
    """
    shared: dict[str, Any] = {"base_model_name_or_path": None, "inference_mode": True, "task_type": None}
    if isinstance(state, LoraState | DoraState):
        return {"peft_type": "LORA", "bias": "none", **shared, **lora_config(state, part)}
    layers = _layers(state, part)
    dropouts = {"rank_dropout": 0.0, "module_dropout": 0.0, "use_effective_conv2d": False}
    if state.kind == "loha":
        ranks = {layer: int(state.rank(layer) or 0) for layer in layers}
        return {"peft_type": "LOHA", **shared, **dropouts, **_numbers(part, ranks, ranks, "alpha")}
    return {"peft_type": "LOKR", **shared, **dropouts, **_lokr(state, part, layers)}


def sides(dimension: int, factor: int) -> tuple[int, int]:
    """The two numbers into whose product peft parts a side of a weight.

    Args:
        dimension: of the weight.
        factor: the first number asked for; if -1, or if it does not divide: the smaller number comes first, as near to
            the root as can be and at most the factor.

    Source: LyCORIS, Yeh et al. 2023, arXiv:2309.14859; the rule is peft's.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    most = dimension if factor < 0 else factor
    smaller = max(n for n in range(1, int(dimension**0.5) + 1) if dimension % n == 0 and n <= most)
    return smaller, dimension // smaller


def alpha_of(alpha: float) -> float:
    """As a file holds it, in float32: then all layouts say the same number."""
    return float(torch.tensor(alpha, dtype=torch.float32))


def _layers(state: AdapterState, part: str) -> list[str]:
    return [layer for layer in state.layers() if layer.startswith(f"{part}.")]


def _numbers(part: str, ranks: Mapping[str, int], alphas: Mapping[str, float], alpha_word: str) -> dict[str, Any]:
    """The commonest rank and alpha, the layers that differ, and all layers."""
    # peft matches the ends of names, so text encoders are named without what not all versions of transformers have
    names = {layer: layer.removeprefix(f"{part}.").removeprefix("text_model.") for layer in ranks}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        alpha_word: _plain(alpha),
        "rank_pattern": {names[layer]: value for layer, value in ranks.items() if value != rank},
        "alpha_pattern": {names[layer]: _plain(value) for layer, value in alphas.items() if value != alpha},
        "target_modules": sorted(names.values()),
    }


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def _check_rows(state: DoraState, layers: list[str]) -> None:
    """That every layer has lengths, and of rows: peft has no other DoRA.

    Raises:
        WeightsError: a layer has none, or of columns; or the direction is no LoRA.
    """
    for layer in layers:
        if "lora_A.weight" not in state.roles(layer) or state.axis(layer) != "output":
            raise WeightsError(
                "peft and diffusers know only a DoRA on a LoRA with magnitudes of the outputs, and this layer is none.",
                where=layer,
                mend="Export in the kohya layout, which ComfyUI, Forge and A1111 load.",
            )


def _lokr(state: AdapterState, part: str, layers: list[str]) -> dict[str, Any]:
    """The factor and ranks from which peft makes factors of just these shapes.

    Raises:
        WeightsError: there are none.
    """
    roles = {layer: state.roles(layer) for layer in layers}
    shapes = {
        k: (_sides_of(r, "lokr_w1", 1), _sides_of(r, "lokr_w2", 9 if is_wide(k) else 1)) for k, r in roles.items()
    }
    both = any("lokr_w1_a" in r for r in roles.values())
    # peft takes whole factors where the rank is at least half their greater side
    ranks = {layer: state.rank(layer) or max(*shapes[layer][0], *shapes[layer][1]) for layer in layers}
    for factor in [*sorted({w1[0] for w1, _ in shapes.values()}), -1]:
        if all(_is_pefts(roles[k], shapes[k], ranks[k], both, factor) for k in layers):
            said = {"decompose_both": both, "decompose_factor": factor}
            return _numbers(part, ranks, ranks, "alpha") | said
    raise WeightsError(
        "peft builds LoKr layers of other shapes than this file's, so it could not load them.",
        where=part,
        mend="Export in the kohya layout.",
    )


def _is_pefts(
    roles: Roles, shapes: tuple[tuple[int, int], tuple[int, int]], rank: int, both: bool, factor: int
) -> bool:
    """Whether peft, given these numbers, makes factors of these shapes, whole and thin as they are."""
    (out1, in1), (out2, in2) = shapes
    whole = ("lokr_w1" in roles, "lokr_w2" in roles)
    expected = (not (both and rank < max(out1, in1) / 2), not rank < max(out2, in2) / 2)
    return whole == expected and sides(out1 * out2, factor) == (out1, out2) and sides(in1 * in2, factor) == (in1, in2)


def _sides_of(roles: Roles, factor: str, kernel: int) -> tuple[int, int]:
    """Out and in of a factor."""
    whole = roles.get(factor)
    if whole is not None:
        return whole.shape[0], whole.shape[1]
    return roles[f"{factor}_a"].shape[0], roles[f"{factor}_b"].shape[1] // kernel


def is_wide(layer: str) -> bool:
    """Whether the layer is a 3x3 convolution, which thin factors do not tell; these are in all U-Nets."""
    return layer.rpartition(".")[2] in {"conv", "conv1", "conv2"}
