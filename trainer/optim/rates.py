"""The learning rate over the run: step -> factor of the optimiser's rate."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from trainer.core.settings import Settings


class Rate(Settings, ABC):
    """A climb over the first `warmup` steps, then a course to the end of the run."""

    warmup: NonNegativeInt = 0
    """Steps in which the rate climbs evenly to its full height; it is never 0, so that no step is lost."""

    def factor(self, step: int, last: int) -> float:
        """The factor in [0, 1] for the step after `step` steps.

        Args:
            step: how many steps are done: 0 before the first.
            last: how many steps the run has; the course ends there.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, last - self.warmup)
        return self.course(min(1.0, done))

    @abstractmethod
    def course(self, done: float) -> float:
        """The factor when the share `done` in [0, 1] of the steps after the climb is made."""


class Constant(Rate):
    """The same rate to the end."""

    kind: Literal["constant"] = "constant"

    def course(self, done: float) -> float:
        """See `Rate.course`."""
        return 1.0


class Linear(Rate):
    """A straight line down."""

    kind: Literal["linear"] = "linear"
    end: float = Field(default=0.0, ge=0, le=1)
    """The factor at the end of the run."""

    def course(self, done: float) -> float:
        """See `Rate.course`."""
        return self.end + (1 - self.end) * (1 - done)


class Cosine(Rate):
    """Half a cosine down: slow at both ends.

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983, eq. 5, without restarts.
    """

    kind: Literal["cosine"] = "cosine"
    end: float = Field(default=0.0, ge=0, le=1)
    """The factor at the end of the run."""

    def course(self, done: float) -> float:
        """See `Rate.course`."""
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2


AnyRate = Annotated[Constant | Linear | Cosine, Field(discriminator="kind")]
