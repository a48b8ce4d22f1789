"""Which moments t are trained on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor
from typing_extensions import Self

from trainer.core.seeds import Seeds
from trainer.core.settings import Settings

STREAM = "timestep"

# Multiples of the golden ratio lie apart on the circle, however many there are.
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


class Timesteps(Settings, ABC):
    """A distribution of t over [low, high), a part of [0, 1); 0 is the picture, 1 is noise."""

    low: float = Field(default=0.0, ge=0, lt=1)
    """The least t; 0.2 is timestep 200 of 1000."""
    high: float = Field(default=1.0, gt=0, le=1)
    """The end of the range; t stays below it."""
    shift: PositiveFloat = 1.0
    """Above 1 leans to noise, as large pictures may want; below 1 to the picture. 1 leaves the moments as they are."""
    spread: NonNegativeInt = 0
    """In every so many batches each part of the distribution is met once, in an order of chance, and the pictures of
    one batch get moments that lie apart: the loss jumps less. 0: each moment is drawn by itself."""

    @model_validator(mode="after")
    def _low_lies_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be less than high ({self.high})")
        return self

    @abstractmethod
    def shares(self, chance: Tensor) -> Tensor:
        """Where in its range each t lies, [B] in [0, 1], for `chance` [B], uniform over [0, 1); both float64."""

    def draw(self, seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """The moments t [B] of the examples, float64 on the CPU; t i belongs to (number, slots[i]) alone.

        Source: of the shift, Esser et al. 2024, arXiv:2403.03206, eq. 23.
        """
        share = self.shares(self._chance(seeds, number, slots))
        share = self.shift * share / (1 + (self.shift - 1) * share)
        t = self.low + (self.high - self.low) * share
        return t.clamp(max=math.nextafter(self.high, 0.0))  # rounding must not reach the end

    def _chance(self, seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """Numbers [B] uniform over [0, 1), float64.

        Source: of the even spread over a batch, Kingma et al. 2021, arXiv:2107.00630, on the low-discrepancy sampler;
        here over batches too, for a batch is often one picture.
        """
        chance = seeds.uniforms(STREAM, number, slots)
        if self.spread == 0:
            return chance
        block, place = divmod(number, self.spread)
        stratum = seeds.permutation(f"{STREAM} strata", block, length=self.spread)[place]
        return ((stratum + chance) / self.spread + _GOLDEN * torch.tensor(list(slots), dtype=torch.float64)) % 1.0


class Uniform(Timesteps):
    """Every moment as often as any other.

    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 1.
    """

    kind: Literal["uniform"] = "uniform"

    def shares(self, chance: Tensor) -> Tensor:
        """See `Timesteps.shares`."""
        return chance


class LogitNormal(Timesteps):
    """The middle more often than the ends: the logit of t is normal. Also called sigmoid.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 19.
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Above 0 leans to noise, below 0 to the picture."""
    deviation: PositiveFloat = 1.0
    """The smaller, the nearer to the middle."""

    def shares(self, chance: Tensor) -> Tensor:
        """See `Timesteps.shares`."""
        return torch.sigmoid(self.mean + self.deviation * torch.special.ndtri(chance))


class Mode(Timesteps):
    """The middle, or the ends, more often, and no moment hardly ever.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 20.
    """

    kind: Literal["mode"] = "mode"
    scale: float = Field(default=1.29, ge=-1, le=1.75)
    """Above 0 leans to the middle, below 0 to the ends; 0 is uniform."""

    def shares(self, chance: Tensor) -> Tensor:
        """See `Timesteps.shares`."""
        bend = (math.pi / 2 * chance).cos().square() - 1 + chance
        return (1 - chance - self.scale * bend).clamp(0, 1)  # rounding may step over the ends


class CosineMap(Timesteps):
    """The moments of a straight path as often as the cosine schedule meets them: the middle somewhat more often.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 21.
    """

    kind: Literal["cosine_map"] = "cosine_map"

    def shares(self, chance: Tensor) -> Tensor:
        """See `Timesteps.shares`."""
        return 1 - 1 / ((math.pi / 2 * chance).tan() + 1)


class Power(Timesteps):
    """One end more often than the other: noise, where composition is decided, or the picture, where style is."""

    kind: Literal["power"] = "power"
    toward: Literal["noise", "picture"] = "noise"
    """The end that is met more often."""
    exponent: PositiveFloat = Field(default=3.0, ge=1)
    """How much more often; 1 is uniform."""

    def shares(self, chance: Tensor) -> Tensor:
        """See `Timesteps.shares`."""
        near = chance.pow(self.exponent)
        return near if self.toward == "picture" else 1 - near


AnyTimesteps = Annotated[Uniform | LogitNormal | Mode | CosineMap | Power, Field(discriminator="kind")]
