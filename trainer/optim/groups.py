"""Parameters and the rate at which each part learns."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import Parameter


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that learn at one rate, in an order that is the same in every run of the recipe."""

    name: str  # of the part, as recipes call it, such as "unet" or "te1"; for logs and checkpoints
    parameters: Sequence[Parameter]
    rate: float | None = None  # its learning rate at its height; None: the optimiser's
