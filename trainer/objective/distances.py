"""How far a prediction lies from its target."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from trainer.core.settings import Settings


class Distance(Settings, ABC):
    """A mean over all numbers of an example; 0 where prediction and target agree."""

    @abstractmethod
    def errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """How far each number is off: [B C h w] for predicted and target [B C h w]."""

    def measure(self, predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """How far each example is off: [B], the mean over its places, each counted as much as its mask says.

        Args:
            predicted: [B C h w].
            target: [B C h w].
            mask: [B 1 h w], at least 0, with a positive sum in every row; None: every place counts. The mean is that
                over the masked area, sum(mask * error) / (C * sum(mask)), so that a small mask counts no less than a
                large one. A row of ones gives, bit for bit, what no mask gives.
        """
        errors = self.errors(predicted, target)
        if mask is None:
            return errors.flatten(1).mean(1)
        # Divided by its own mean first, and averaged as without a mask: dividing sums would round ones otherwise.
        places = mask.flatten(1)
        share = places.sum(1) / places.shape[1]
        return (errors * (mask / share[:, None, None, None])).flatten(1).mean(1)


class Mse(Distance):
    """The squared error."""

    kind: Literal["mse"] = "mse"

    def errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `Distance.errors`."""
        return (predicted - target).square()


class L1(Distance):
    """The absolute error."""

    kind: Literal["l1"] = "l1"

    def errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `Distance.errors`."""
        return (predicted - target).abs()


class Huber(Distance):
    """The squared error for small errors, 2 * delta times the absolute error for large ones, smooth between.

    Spoiled pictures pull less. Source: Khrapov et al. 2024, arXiv:2403.16728, on the pseudo-Huber loss.
    """

    kind: Literal["huber"] = "huber"
    delta: PositiveFloat = 0.1
    """The error at which the one becomes the other."""

    def errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `Distance.errors`."""
        square = (predicted - target).square()
        # 2 delta (sqrt(x^2 + delta^2) - delta), in the form that does not cancel for small x
        return 2 * self.delta * square / ((square + self.delta**2).sqrt() + self.delta)


AnyDistance = Annotated[Mse | L1 | Huber, Field(discriminator="kind")]
