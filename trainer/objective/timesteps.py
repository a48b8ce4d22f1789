"""Which moments t are trained on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor
from typing_extensions import Self

from trainer.core.seeds import Seeds
from trainer.core.settings import Settings

STREAM = "timestep"


class Timesteps(Settings, ABC):
    """A distribution of t over [low, high), a part of [0, 1); 0 is the picture, 1 is noise."""

    low: float = Field(default=0.0, ge=0, lt=1)
    """The least t; 0.2 is timestep 200 of 1000."""
    high: float = Field(default=1.0, gt=0, le=1)
    """The end of the range; t stays below it."""

    @model_validator(mode="after")
    def _low_lies_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be less than high ({self.high})")
        return self

    @abstractmethod
    def shares(self, seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """Where in its range each t lies: [B] in [0, 1], float64."""

    def draw(self, seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """The moments t [B] of the examples, float64 on the CPU; t i belongs to (number, slots[i]) alone."""
        t = self.low + (self.high - self.low) * self.shares(seeds, number, slots)
        return t.clamp(max=math.nextafter(self.high, 0.0))  # rounding must not reach the end


class Uniform(Timesteps):
    """Every moment as often as any other.

    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 1.
    """

    kind: Literal["uniform"] = "uniform"

    def shares(self, seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """See `Timesteps.shares`."""
        return seeds.uniforms(STREAM, number, slots)


class LogitNormal(Timesteps):
    """The middle more often than the ends: the logit of t is normal.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 19.
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Above 0 leans to noise, below 0 to the picture."""
    deviation: PositiveFloat = 1.0
    """The smaller, the nearer to the middle."""

    def shares(self, seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """See `Timesteps.shares`."""
        normal = seeds.normal(STREAM, number, slots, ()).double()
        return torch.sigmoid(self.mean + self.deviation * normal)


AnyTimesteps = Annotated[Uniform | LogitNormal, Field(discriminator="kind")]
