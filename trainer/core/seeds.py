"""Chance as a pure function of (seed, stream, place): nothing random is ever stored."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import, and processes that decode pictures meet this module
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Seeds:
    """All chance of a run.

    A number depends on the run's seed, on the name of its stream and on its place (step, slot, ...) alone: not on
    history, on the number of processes or on how often another stream was asked. Streams are drawn on the CPU, so that
    every device gets the same numbers.
    """

    seed: int

    def generator(self, stream: str, *place: int | str) -> "torch.Generator":
        """A CPU generator that belongs to this stream and place."""
        import torch

        return torch.Generator().manual_seed(self.integer(stream, *place))

    def integer(self, stream: str, *place: int | str) -> int:
        """An integer in [0, 2^63), uniform over places."""
        words = "/".join(str(part) for part in (self.seed, stream, *place))
        return int.from_bytes(hashlib.blake2b(words.encode("utf-8"), digest_size=8).digest(), "big") >> 1

    def uniform(self, stream: str, *place: int | str) -> float:
        """A number in [0, 1) with 53 random bits."""
        return (self.integer(stream, *place) >> 10) / (1 << 53)

    def normal(self, stream: str, number: int, slots: Sequence[int], shape: Sequence[int]) -> "Tensor":
        """Standard normal numbers [len(slots) *shape], float32; row i belongs to (stream, number, slots[i])."""
        import torch

        rows = [torch.randn(tuple(shape), generator=self.generator(stream, number, slot)) for slot in slots]
        return torch.stack(rows)

    def uniforms(self, stream: str, number: int, slots: Sequence[int]) -> "Tensor":
        """Numbers in [0, 1), [len(slots)], float64; number i belongs to (stream, number, slots[i])."""
        import torch

        return torch.tensor([self.uniform(stream, number, slot) for slot in slots], dtype=torch.float64)

    def permutation(self, stream: str, *place: int | str, length: int) -> list[int]:
        """The numbers 0 .. length-1 in an order that belongs to this stream and place."""
        import torch

        return torch.randperm(length, generator=self.generator(stream, *place)).tolist()
