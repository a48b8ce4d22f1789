"""How far a prediction lies from its target."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from trainer.core.settings import Settings
from trainer.objective.moments import Moments


class Distance(Settings, ABC):
    """A mean over all numbers of an example; 0 where prediction and target agree."""

    @abstractmethod
    def errors(self, predicted: Tensor, target: Tensor, moments: Moments) -> Tensor:
        """How far each number is off: [B C h w] for predicted and target [B C h w], asked at `moments`."""

    def measure(self, predicted: Tensor, target: Tensor, moments: Moments, mask: Tensor | None = None) -> Tensor:
        """How far each example is off: [B], the mean over its places, each counted as much as its mask says.

        Args:
            predicted: [B C h w].
            target: [B C h w].
            moments: when each example was asked.
            mask: [B 1 h w], at least 0, with a positive sum in every row; None: every place counts. The mean is that
                over the masked area, sum(mask * error) / (C * sum(mask)), so that a small mask counts no less than a
                large one. A row of ones gives, bit for bit, what no mask gives.
        """
        errors = self.errors(predicted, target, moments)
        if mask is None:
            return errors.flatten(1).mean(1)
        # Divided by its own mean first, and averaged as without a mask: dividing sums would round ones otherwise.
        places = mask.flatten(1)
        share = places.sum(1) / places.shape[1]
        return (errors * (mask / share[:, None, None, None])).flatten(1).mean(1)


class Mse(Distance):
    """The squared error."""

    kind: Literal["mse"] = "mse"

    def errors(self, predicted: Tensor, target: Tensor, moments: Moments) -> Tensor:
        """See `Distance.errors`."""
        return (predicted - target).square()


class L1(Distance):
    """The absolute error."""

    kind: Literal["l1"] = "l1"

    def errors(self, predicted: Tensor, target: Tensor, moments: Moments) -> Tensor:
        """See `Distance.errors`."""
        return (predicted - target).abs()


class Bordered(Distance, ABC):
    """Squared below a border and absolute above it, so that spoiled pictures pull less.

    Source: Khrapov et al. 2024, arXiv:2403.16728, on the pseudo-Huber loss and its schedules.
    """

    delta: PositiveFloat = 0.1
    """The error at which the one becomes the other; with a schedule, that at pure noise."""
    schedule: Literal["constant", "exponential", "snr"] = "constant"
    """How the border lies over the moments: `constant`; or 1 at the picture and delta at pure noise, `exponential` in
    between, or falling with the signal as (1 - delta) / (1 + s / a)^2 + delta (`snr`)."""

    def border(self, moments: Moments) -> Tensor | float:
        """The border at these moments, [B 1 1 1] or the same for all; above 0, also at pure noise."""
        if self.schedule == "constant":
            return self.delta
        if self.schedule == "exponential":
            return self.delta ** moments.t[:, None, None, None]
        a, s = moments.columns
        return (1 - self.delta) * (a / (a + s)).square() + self.delta


class Huber(Bordered):
    """The squared error for small errors, 2 * delta times the absolute error for large ones, smooth between."""

    kind: Literal["huber"] = "huber"

    def errors(self, predicted: Tensor, target: Tensor, moments: Moments) -> Tensor:
        """See `Distance.errors`."""
        square, border = (predicted - target).square(), self.border(moments)
        # 2 delta (sqrt(x^2 + delta^2) - delta), in the form that does not cancel for small x
        return 2 * border * square / ((square + border**2).sqrt() + border)


class SmoothL1(Bordered):
    """Twice the absolute error for large errors, the squared error / delta for small ones, smooth between."""

    kind: Literal["smooth_l1"] = "smooth_l1"

    def errors(self, predicted: Tensor, target: Tensor, moments: Moments) -> Tensor:
        """See `Distance.errors`."""
        square, border = (predicted - target).square(), self.border(moments)
        # 2 (sqrt(x^2 + delta^2) - delta), in the form that does not cancel for small x
        return 2 * square / ((square + border**2).sqrt() + border)


AnyDistance = Annotated[Mse | L1 | Huber | SmoothL1, Field(discriminator="kind")]
