"""What an optimiser keeps besides weights and gradients, counted on itself."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from typing_extensions import override

from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizer import OptimizerSettings

_TRIAL: Final = 1 << 18  # numbers; from some 100,000 on, all optimisers keep as much for each number


def state_bytes(settings: OptimizerSettings, groups: Sequence[ParameterGroup]) -> int:
    """Bytes of state that the optimiser keeps for these parameters, which need no numbers.

    For each shape the recipe's own optimiser makes one step on real numbers on this machine's processor, and what it
    keeps is counted: so 8-bit blocks, factored moments and small tensors in 32 bits are as they are. Of optimisers that
    treat each number, or each block of 256, by itself, a long tensor is counted on a part of it.

    Raises:
        RecipeError: this optimiser cannot work on this machine.
    """
    shapes: dict[tuple[int, ...], int] = {}
    for group in groups:
        for parameter in group.parameters:
            shape = tuple(parameter.shape)
            shapes[shape] = shapes.get(shape, 0) + 1
    return sum(times * _bytes_of(settings, shape) for shape, times in shapes.items())


def _bytes_of(settings: OptimizerSettings, shape: tuple[int, ...]) -> int:
    size = torch.Size(shape).numel()
    if settings.joins and size > _TRIAL:
        return round(size / _TRIAL * _counted(settings, (_TRIAL,)))
    return _counted(settings, shape)


def _counted(settings: OptimizerSettings, shape: tuple[int, ...]) -> int:
    trial = Parameter(torch.zeros(shape))
    trial.grad = torch.full(shape, 1e-3)
    optimizer = settings.build([ParameterGroup("trial", [trial], None)])
    optimizer.step()
    seen: dict[int, int] = {}
    for value in optimizer.state[trial].values():
        if isinstance(value, Tensor) and value.numel() > 1:
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(seen.values())


class Standing(Optimizer):
    """An optimiser that moves nothing, where only what surrounds it is counted."""

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        """Over the parameters of `groups`."""
        super().__init__([{"params": list(group.parameters), "name": group.name} for group in groups], {"lr": 0.0})

    @override
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing."""
