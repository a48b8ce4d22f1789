"""How far a prediction lies from its target."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from trainer.core.settings import Settings


class Distance(Settings, ABC):
    """A mean over all numbers of an example; 0 where prediction and target agree."""

    @abstractmethod
    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        """How far each example is off: [B] for predicted and target [B C h w]."""


class Mse(Distance):
    """The squared error."""

    kind: Literal["mse"] = "mse"

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `Distance.measure`."""
        return (predicted - target).square().flatten(1).mean(1)


class L1(Distance):
    """The absolute error."""

    kind: Literal["l1"] = "l1"

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `Distance.measure`."""
        return (predicted - target).abs().flatten(1).mean(1)


class Huber(Distance):
    """The squared error for small errors, 2 * delta times the absolute error for large ones, smooth between.

    Spoiled pictures pull less. Source: Khrapov et al. 2024, arXiv:2403.16728, on the pseudo-Huber loss.
    """

    kind: Literal["huber"] = "huber"
    delta: PositiveFloat = 0.1
    """The error at which the one becomes the other."""

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `Distance.measure`."""
        square = (predicted - target).square()
        # 2 delta (sqrt(x^2 + delta^2) - delta), in the form that does not cancel for small x
        huber = 2 * self.delta * square / ((square + self.delta**2).sqrt() + self.delta)
        return huber.flatten(1).mean(1)


AnyDistance = Annotated[Mse | L1 | Huber, Field(discriminator="kind")]
