"""What every optimiser's settings promise."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.optim import Optimizer

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.optim.groups import ParameterGroup

Share = Annotated[float, Field(ge=0, lt=1)]

# A parameter group in the open form that torch's optimisers take and type so; they keep our `name` beside their keys.
TorchGroup = dict[str, Any]


class OptimizerSettings(Settings, ABC):
    """How weights move."""

    joins: ClassVar[bool] = True
    """Whether it moves weights alike when many tensors are joined to a long one: it treats each number, or each block
    of 256, by itself, and asks of all together only sums."""

    apart: ClassVar[bool] = True
    """Whether each tensor is moved without regard to the others, so that one can be moved before the others are."""

    shards: ClassVar[bool] = False
    """Whether it moves tensors of which each process holds a share to where it would move them whole."""

    rate: PositiveFloat = 1e-4
    """The learning rate at its height; the recipe's `rate` says how it runs over the steps."""

    @abstractmethod
    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """The optimiser of these parameters, without state yet, ready to step.

        Its groups keep the order, the names and the rates of `groups`; a group that names no rate learns at `rate`.

        Raises:
            RecipeError: this optimiser cannot work on this machine, or not with these rates.
        """

    def check(self, device: torch.device) -> None:
        """Make sure, before anything is loaded, that this optimiser can work on `device`.

        Raises:
            RecipeError: its library is missing, or cannot work there.
        """

    def torch_groups(self, groups: Sequence[ParameterGroup]) -> list[TorchGroup]:
        """The groups as torch takes them."""
        return [
            {
                "params": list(group.parameters),
                "lr": self.rate if group.rate is None else group.rate,
                "name": group.name,
            }
            for group in groups
        ]


class WithDecay(OptimizerSettings, ABC):
    """An optimiser that draws weights to 0 apart from the gradient."""

    weight_decay: NonNegativeFloat = 0.01
    """How strongly weights are drawn to 0, per step and rate."""


class WithMoments(WithDecay, ABC):
    """An optimiser that keeps means of the gradient and of its square."""

    betas: tuple[Share, Share] = (0.9, 0.999)
    """How long the means of the gradient and of its square remember."""
    epsilon: PositiveFloat = 1e-8
    """Added to the divisor, so that tiny gradients do not make large steps."""


def cannot_run(what: str, reason: str, mend: str) -> RecipeError:
    """The error of an optimiser that cannot work on this machine."""
    return RecipeError(f"{what} ({reason}).", where="optimizer.kind", mend=mend)


def need_library(library: str, what: str) -> None:
    """Make sure that a library is there, without which `what` cannot run.

    Raises:
        RecipeError: it is not.
    """
    try:
        import_module(library)
    except ImportError as error:
        mend = f"Install it (pip install {library}), or use optimizer.kind=adamw."
        raise cannot_run(f"{what} cannot run here: {library} cannot be imported", first_line(error), mend) from error


def first_line(error: Exception) -> str:
    """What `error` says first; libraries often go on for a page."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
