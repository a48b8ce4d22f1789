"""The change of a layer is held small."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def limit_norm(layer: Any, adapter: str, most: float) -> None:
    """Shrink the tensors of one of peft's layers so that the Frobenius norm of its change is at most `most`.

    All tensors shrink alike; nothing waits for the device.

    Args:
        layer: of peft, which has no public type for it; at its full strength.
        adapter: its name there.
        most: of the change with its scale.

    Source: sd-scripts' `scale_weight_norms`.
    """
    if hasattr(layer, "lora_A"):  # peft's kinds of layers share no typed base
        halves: list[Tensor] = [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight]
        norm, tensors = _norm_of_pair(*halves) * layer.scaling[adapter], halves
    else:
        norm = layer.get_delta_weight(adapter).norm()
        every = [getattr(layer, name) for name in layer.adapter_layer_names]
        tensors = [of_name[adapter] for of_name in every if adapter in of_name]
    ratio = (most / norm.clamp_min(most)) ** (1.0 / len(tensors))
    for tensor in tensors:
        tensor.mul_(ratio.to(tensor.dtype))


def _norm_of_pair(down: Tensor, up: Tensor) -> Tensor:
    """||up down|| without building it: the root of trace(upᵀ up · down downᵀ), two matrices of rank by rank."""
    low, high = down.flatten(1), up.flatten(1)
    return ((high.T @ high) * (low @ low.T)).sum().clamp_min(0.0).sqrt()
