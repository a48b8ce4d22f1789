"""The learning rate over the run: step -> factor of the optimiser's rate."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

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
    """Half a cosine down: slow at both ends; or several of them, one after the other.

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983, eq. 5.
    """

    kind: Literal["cosine"] = "cosine"
    end: float = Field(default=0.0, ge=0, le=1)
    """The factor at the end of the run, and of each cycle."""
    cycles: PositiveInt = 1
    """How often it goes down; each time it begins again at its full height."""

    def course(self, done: float) -> float:
        """See `Rate.course`."""
        within = 1.0 if done == 1 else (self.cycles * done) % 1.0
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * within)) / 2


class Polynomial(Rate):
    """A curve down, steep at first and flat at the end."""

    kind: Literal["polynomial"] = "polynomial"
    power: PositiveFloat = 2.0
    """How bent it is; 1 is a straight line, below 1 it is flat at first and steep at the end."""
    end: float = Field(default=0.0, ge=0, le=1)
    """The factor at the end of the run."""

    def course(self, done: float) -> float:
        """See `Rate.course`."""
        return self.end + (1 - self.end) * (1 - done) ** self.power


class WarmupStableDecay(Rate):
    """The full rate for most of the run, then down to the end: good where the number of steps may still change.

    Source: Hu et al. 2024, arXiv:2404.06395, section 4; Hägele et al. 2024, arXiv:2405.18392, on the 1 - sqrt way down.
    """

    kind: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    decay: float = Field(default=0.2, gt=0, le=1)
    """The share of the steps after the climb in which the rate goes down."""
    form: Literal["root", "linear", "cosine"] = "root"
    """How it goes down, by the share x of that way: 1 - sqrt(x), 1 - x, or half a cosine."""
    end: float = Field(default=0.0, ge=0, le=1)
    """The factor at the end of the run."""

    def course(self, done: float) -> float:
        """See `Rate.course`."""
        x = max(0.0, done - (1 - self.decay)) / self.decay
        left = {"root": 1 - math.sqrt(x), "linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2}[self.form]
        return self.end + (1 - self.end) * max(0.0, left)  # rounding may step below the end


AnyRate = Annotated[Constant | Linear | Cosine | Polynomial | WarmupStableDecay, Field(discriminator="kind")]
