"""LoRAs that become part of a base model before training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from trainer.core.errors import WeightsError
from trainer.core.settings import Settings
from trainer.weights.live_layers import live_layers
from trainer.weights.merging import Weighted, merged_weight
from trainer.weights.names import Naming


class BaseLora(Settings):
    """A LoRA or its like that is merged into the base model; what is trained learns on top of it."""

    file: Path
    """The adapter: a LoRA, LoHa, LoKr or DoRA in kohya's, diffusers' or peft's layout, of the base model's family."""
    strength: float = 1.0
    """How strongly it acts, as other programs count it."""


def merge_into(network: nn.Module, part: str, naming: Naming, adapters: Sequence[Weighted]) -> None:
    """Add the changes of adapters to a network's weights, in place.

    Every weight is summed up in float32 and rounded once, into its own number format.

    Args:
        network: one of the base model, on the CPU, without adapters.
        part: which it is; what the adapters change in other networks is left to those.
        naming: of the family.
        adapters: what is added.

    Raises:
        WeightsError: the network lacks a layer, or it is of another size.
        NonFiniteError: a weight is not finite in the network's number format.
    """
    places = live_layers(network, part, naming)
    acting: dict[str, list[Weighted]] = {}
    for one in adapters:
        for layer in one.adapter.layers():
            if layer.startswith(f"{part}.") and one.strength:
                acting.setdefault(layer, []).append(one)
    foreign = sorted(set(acting) - set(places))
    if foreign:
        raise WeightsError(
            f"{acting[foreign[0]][0].name} changes {len(foreign)} layers that the base model does not have, "
            f"{foreign[0]} among them.",
            where="model.loras",
            mend="Make sure that it was trained on a model of this family and size.",
        )
    with torch.no_grad():
        for layer, ones in acting.items():
            weight = network.get_parameter(f"{places[layer]}.weight")
            weight.copy_(merged_weight(layer, weight, ones, weight.dtype))
