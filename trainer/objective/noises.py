"""Which noise is mixed in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import interpolate

from trainer.core.seeds import Seeds
from trainer.core.settings import Settings

STREAM = "noise"


class Noise(Settings, ABC):
    """A distribution of noise with mean 0 and about unit variance."""

    @abstractmethod
    def draw(self, shape: Sequence[int], seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """Noise [B C h w], float32 on the CPU; row i belongs to (number, slots[i]) alone.

        Args:
            shape: (C, h, w), the shape of one example's latent.
            seeds: the chance of the run.
            number: the number of the batch in the run.
            slots: the places [B] of the examples in the whole batch.
        """


class Gaussian(Noise):
    """Independent normal numbers, as the base models were trained."""

    kind: Literal["gaussian"] = "gaussian"

    def draw(self, shape: Sequence[int], seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """See `Noise.draw`."""
        return seeds.normal(STREAM, number, slots, shape)


class Offset(Noise):
    """Gaussian noise plus one number a channel, so that whole pictures can become darker or lighter than usual.

    The variance of a number is 1 + strength^2, or 1 + strength^2 / 3 where the strength is drawn. Source: Guttenberg
    2023, "Diffusion with Offset Noise", Cross Labs.
    """

    kind: Literal["offset"] = "offset"
    strength: NonNegativeFloat = 0.0357
    """How much of the constant part; 0.03 to 0.1 is usual."""
    random_strength: bool = False
    """Whether the strength is drawn for each picture, evenly between 0 and `strength`, so that some are left alone."""

    def draw(self, shape: Sequence[int], seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """See `Noise.draw`."""
        constant = seeds.normal(f"{STREAM} offset", number, slots, (shape[0], 1, 1))
        if self.random_strength:
            share = seeds.uniforms(f"{STREAM} offset strength", number, slots).float()
            constant = constant * share[:, None, None, None]
        return seeds.normal(STREAM, number, slots, shape) + self.strength * constant


class Pyramid(Noise):
    """Gaussian noise plus coarser and coarser noise, each level `discount` times weaker; unit power an example.

    Each level is 2 to 4 times coarser than the one before, by a factor drawn for each example; levels end at one
    number a channel. Each example is brought back to unit power by itself, not by the batch it happens to be in.
    Source: Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training", Weights & Biases.
    """

    kind: Literal["pyramid"] = "pyramid"
    levels: PositiveInt = 8
    """The most coarser levels; small latents have room for fewer."""
    discount: float = Field(default=0.2, gt=0, lt=1)
    """The share of each level in the next coarser one."""

    def draw(self, shape: Sequence[int], seeds: Seeds, number: int, slots: Sequence[int]) -> Tensor:
        """See `Noise.draw`."""
        fine = seeds.normal(STREAM, number, slots, shape)
        coarse = [self._coarse(shape, seeds, number, slot) for slot in slots]
        noise = fine + torch.stack(coarse)
        return noise / noise.square().mean((1, 2, 3), keepdim=True).sqrt()

    def _coarse(self, shape: Sequence[int], seeds: Seeds, number: int, slot: int) -> Tensor:
        """The sum of one example's coarser levels [C h w]."""
        channels, height, width = shape
        ratio = 2 + 2 * seeds.uniform(f"{STREAM} ratio", number, slot)
        total = torch.zeros(channels, height, width)
        for level in range(1, self.levels + 1):
            size = (max(1, int(height / ratio**level)), max(1, int(width / ratio**level)))
            generator = seeds.generator(f"{STREAM} level", number, slot, level)
            numbers = torch.randn(1, channels, *size, generator=generator)
            total += self.discount**level * interpolate(numbers, (height, width), mode="bilinear")[0]
            if size == (1, 1):
                break
        return total


AnyNoise = Annotated[Gaussian | Offset | Pyramid, Field(discriminator="kind")]
