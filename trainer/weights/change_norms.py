"""How much an adapter changes each layer, without building what it need not build."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.weights.lora_state import check_pair


def change_norm(tensors: Mapping[str, Tensor], alpha: float | None) -> tuple[float, int] | None:
    """The Frobenius norm of a layer's change of weight, and the number of weights it changes.

    Args:
        tensors: by role (down, up, hada_w1_a, lokr_w1, ...).
        alpha: None where the file has none: it is the rank then.

    Returns:
        None where the change has a form that is not computed here (Tucker decompositions).

    Raises:
        WeightsError: a half is missing, or shapes do not fit.
    """
    if {"mid", "hada_t1", "lokr_t1", "lokr_t2"} & set(tensors):
        return None
    if any(role.startswith("hada") for role in tensors):
        return _of_loha(tensors, alpha)
    if any(role.startswith("lokr") for role in tensors):
        return _of_lokr(tensors, alpha)
    return _of_lora(_role(tensors, "down"), _role(tensors, "up"), alpha)


def _of_lora(down: Tensor, up: Tensor, alpha: float | None) -> tuple[float, int]:
    """||up down||² = trace(upᵀ up · down downᵀ), two small matrices of rank by rank."""
    check_pair("this layer", down, up)
    rank = down.shape[0]
    scale = 1.0 if alpha is None else alpha / rank
    low, high = down.double().flatten(1), up.double().flatten(1)
    square = float(((high.T @ high) * (low @ low.T)).sum())
    return abs(scale) * math.sqrt(max(square, 0.0) if math.isfinite(square) else square), high.shape[0] * low.shape[1]


def _of_loha(tensors: Mapping[str, Tensor], alpha: float | None) -> tuple[float, int]:
    """(w1_a w1_b) ∘ (w2_a w2_b); Hyeon-Woo et al. 2022, arXiv:2108.06098, equation 2."""
    first = _product(_role(tensors, "hada_w1_a"), _role(tensors, "hada_w1_b"))
    second = _product(_role(tensors, "hada_w2_a"), _role(tensors, "hada_w2_b"))
    if first.shape != second.shape:
        raise WeightsError("The two factors of this LoHa do not fit.")
    scale = 1.0 if alpha is None else alpha / tensors["hada_w1_b"].shape[0]
    return abs(scale) * float((first * second).norm()), first.numel()


def _of_lokr(tensors: Mapping[str, Tensor], alpha: float | None) -> tuple[float, int]:
    """||kron(w1, w2)|| = ||w1|| ||w2||; when both factors are whole, alpha counts for nothing."""
    factors = [tensors.get(w) for w in ("lokr_w1", "lokr_w2")]
    ranks = [tensors[w].shape[0] for w in ("lokr_w2_b", "lokr_w1_b") if w in tensors and tensors[w].ndim]
    built = [
        whole.double() if whole is not None else _product(_role(tensors, f"{w}_a"), _role(tensors, f"{w}_b"))
        for w, whole in zip(("lokr_w1", "lokr_w2"), factors, strict=True)
    ]
    scale = alpha / ranks[0] if ranks and alpha is not None else 1.0
    return abs(scale) * float(built[0].norm() * built[1].norm()), built[0].numel() * built[1].numel()


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or not right.shape[0]:
        raise WeightsError(f"The shapes {list(left.shape)} and {list(right.shape)} do not fit.")
    return left.to(torch.float64) @ right.to(torch.float64)


def _role(tensors: Mapping[str, Tensor], role: str) -> Tensor:
    if role not in tensors:
        raise WeightsError(f"Its {role} is missing.")
    return tensors[role]
