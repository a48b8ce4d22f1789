"""The optimisers that a recipe can name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.nn import Parameter
from torch.optim import Optimizer

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.optim.groups import ParameterGroup

Share = Annotated[float, Field(ge=0, lt=1)]


# A parameter group in the open form that torch's optimisers take and type so; they keep our `name` beside their keys.
TorchGroup = dict[str, Any]


class OptimizerSettings(Settings, ABC):
    """How weights move."""

    rate: PositiveFloat = 1e-4
    """The learning rate at its height; the recipe's `rate` says how it runs over the steps."""

    @abstractmethod
    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """The optimiser of these parameters, without state yet.

        Its groups keep the order, the names and the rates of `groups`; a group that names no rate learns at `rate`.

        Raises:
            RecipeError: this optimiser cannot work on this machine.
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


class AdamW(OptimizerSettings):
    """Adam with decoupled weight decay: steady, needs two numbers of float32 a weight.

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101, Algorithm 2.
    """

    kind: Literal["adamw"] = "adamw"
    weight_decay: NonNegativeFloat = 0.01
    """How strongly weights are drawn to 0, per step and rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """How long the means of the gradient and of its square remember."""
    epsilon: PositiveFloat = 1e-8
    """Added to the divisor, so that tiny gradients do not make large steps."""

    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """See `OptimizerSettings.build`."""
        return torch.optim.AdamW(
            self.torch_groups(groups),
            lr=self.rate,
            betas=self.betas,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
        )


class AdamW8bit(OptimizerSettings):
    """AdamW with a quarter of the memory: its two numbers a weight are kept in 8 bits each, in blocks of 256.

    Tensors of fewer than 4,096 weights keep 32 bits. Source: Dettmers et al. 2021, arXiv:2110.02861.
    """

    kind: Literal["adamw_8bit"] = "adamw_8bit"
    weight_decay: NonNegativeFloat = 0.01
    """How strongly weights are drawn to 0, per step and rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """How long the means of the gradient and of its square remember."""
    epsilon: PositiveFloat = 1e-8
    """Added to the divisor, so that tiny gradients do not make large steps."""

    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """See `OptimizerSettings.build`."""
        try:
            from bitsandbytes.optim import AdamW8bit as Bitsandbytes
        except (ImportError, RuntimeError) as error:
            raise _cannot("bitsandbytes cannot be imported", error) from error

        def made(torch_groups: list[TorchGroup]) -> Optimizer:
            return Bitsandbytes(
                torch_groups,
                lr=self.rate,
                betas=self.betas,
                eps=self.epsilon,
                weight_decay=self.weight_decay,
            )

        for device in {parameter.device for group in groups for parameter in group.parameters}:
            # Without its native library bitsandbytes fails at the first step, after minutes of loading: try one now.
            trial = Parameter(torch.zeros(4096, device=device))
            trial.grad = torch.ones_like(trial)
            try:
                made([{"params": [trial], "lr": self.rate}]).step()
            except (RuntimeError, AttributeError) as error:
                raise _cannot(f"bitsandbytes cannot work on {device.type}", error) from error
        return made(self.torch_groups(groups))


def _cannot(what: str, error: Exception) -> RecipeError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RecipeError(
        f"The 8-bit optimiser cannot run here: {what} ({reason}).",
        where="optimizer.kind",
        mend="Use optimizer.kind=adamw, or install the bitsandbytes that fits this machine.",
    )


AnyOptimizer = Annotated[AdamW | AdamW8bit, Field(discriminator="kind")]
