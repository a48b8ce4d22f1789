"""The vocabulary of the house: what flows from room to room.

Dimensions, in every file: B batch, C latent channels, h w latent height and width,
H W height and width in pixels, T tokens, D width of a token, P width of a pooled text state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from typing_extensions import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What the words of B captions mean to the network."""

    tokens: Tensor  # [B T D]
    pooled: Tensor | None = None  # [B P]; absent where the family has none

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return replace(self, tokens=self.tokens.to(device), pooled=pooled)

    def take(self, rows: Tensor) -> Self:
        """The captions `rows` [N], int64 on the same device."""
        return replace(self, tokens=self.tokens[rows], pooled=None if self.pooled is None else self.pooled[rows])

    def rows(self) -> list[Self]:
        """Each of the B captions by itself, [1 T D]."""
        pooled = [None] * len(self.tokens) if self.pooled is None else self.pooled.split(1)
        return [replace(self, tokens=t, pooled=p) for t, p in zip(self.tokens.split(1), pooled, strict=True)]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The captions of all parts, one after the other; the inverse of `rows`."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(tokens=torch.cat([part.tokens for part in parts]), pooled=torch.cat(pooled) if pooled else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """What the autoencoder says of B pictures: a normal distribution a latent number, scaled for the network."""

    mean: Tensor  # [B C h w]
    deviation: Tensor  # [B C h w]

    def sample(self, draw: Tensor) -> Tensor:
        """Latents [B C h w] from standard normal numbers [B C h w]."""
        return self.mean + self.deviation * draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """What turns pictures and words into what the cache stores, and the names under which it stores them.

    The identities change when anything changes that changes a result: weights, number format, code version.
    The functions load their network when they are first called, so that a full cache costs nothing.
    """

    encode_pictures: Callable[[Tensor], Posterior]  # pixels [B 3 H W] in -1 .. 1
    encode_words: Callable[[Sequence[str]], Conditioning]
    pictures_identity: str
    words_identity: str
    scale: int  # pixels a latent column


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How B pictures were cut to size: what SDXL's size and crop conditioning speaks of."""

    original: Tensor  # [B 2] height and width before resizing, pixels, int64
    crop: Tensor  # [B 2] top and left of the crop after resizing, pixels, int64
    target: Tensor  # [B 2] height and width of the bucket, pixels, int64

    @classmethod
    def whole(cls, count: int, height: int, width: int, device: torch.device) -> Self:
        """Of pictures that are as large as they were, and not cut."""
        size = torch.tensor([[height, width]], device=device).repeat(count, 1)
        return cls(original=size, crop=torch.zeros_like(size), target=size)

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(
            self, original=self.original.to(device), crop=self.crop.to(device), target=self.target.to(device)
        )

    def take(self, rows: Tensor) -> Self:
        """The pictures `rows` [N], int64 on the same device."""
        return replace(self, original=self.original[rows], crop=self.crop[rows], target=self.target[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one pass eats: B examples out of one bucket.

    Chance belongs to (number, slot): `number` counts the batches of the run, `slots` are the examples' places in the
    whole batch over all processes, so that two processes draw what one would draw.
    """

    number: int
    slots: tuple[int, ...]
    latents: Tensor  # [B C h w], scaled as the network expects
    words: Conditioning | tuple[str, ...]  # what they mean; or the words themselves, where text encoders are trained
    geometry: Geometry
    weight: Tensor  # [B] float32; 1 unless the source asked otherwise, 0 for filling
    total: int  # examples in the whole batch over all processes, without filling
    keys: tuple[str, ...]  # content keys of the pictures, for messages
    mask: Tensor | None = None  # [B 1 h w] float32 in 0 .. 1, how much each place counts; a row's sum is positive
    from_base: tuple[int, ...] = ()  # rows, rising, whose target is the base model's own answer

    def __len__(self) -> int:
        """The number of examples in this process's part."""
        return len(self.keys)

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, Conditioning, Geometry))
        }
        return replace(self, **moved)

    def take(self, rows: Sequence[int]) -> Self:
        """These examples alone, in this order; their numbers still belong to the whole batch."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.latents.device)
        words = self.words
        return replace(
            self,
            slots=tuple(self.slots[row] for row in rows),
            latents=self.latents[index],
            words=words.take(index) if isinstance(words, Conditioning) else tuple(words[row] for row in rows),
            geometry=self.geometry.take(index),
            weight=self.weight[index],
            keys=tuple(self.keys[row] for row in rows),
            mask=None if self.mask is None else self.mask[index],
            from_base=tuple(place for place, row in enumerate(rows) if row in self.from_base),
        )
