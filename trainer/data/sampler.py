"""Which examples form which batch: bucketed, shared among processes, and known from the batch's number alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.core.seeds import Seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """One process's part of one batch."""

    number: int  # counts the batches of the run
    slots: tuple[int, ...]  # places in the whole batch over all processes
    examples: tuple[int, ...]  # the example in each slot; from slot `total` on it is filling, of weight 0
    total: int  # examples in the whole batch, without filling


class _Epoch(NamedTuple):
    """The order of one epoch."""

    showings: NDArray[np.integer]  # examples, bucket by bucket, in the order in which each bucket shows them
    batches: NDArray[np.integer]  # which batch comes when, counted through the buckets


class BucketSampler:
    """The order of a run. Each epoch shows every example exactly as often as its repeats, in batches of one bucket.

    The last batch of a bucket may be smaller; none is dropped. With several processes each gets the same number of
    examples of every batch; where the last ones do not suffice, early ones of the same batch are shown again as
    filling. A batch is cut out of its epoch's order when it is asked for, so that it costs the same in a set of any
    size; an order takes a few bytes a showing.
    """

    def __init__(
        self,
        bucket_of: Sequence[int] | NDArray[np.integer],
        batch: int,
        seeds: Seeds,
        *,
        repeats: Sequence[int] | NDArray[np.integer] | None = None,
        world: int = 1,
        rank: int = 0,
    ) -> None:
        """Plan for examples in the buckets `bucket_of`, `batch` of them a process.

        Args:
            bucket_of: [N] a number for each example's bucket.
            batch: examples at once in one process.
            seeds: the chance of the run.
            repeats: [N], each at least 1: how often each example is shown in one epoch; None: once.
            world: the number of processes that share each batch.
            rank: which of them this is.

        Raises:
            ValueError: there is no example, or repeats, batch, world and rank do not fit together.
        """
        if not len(bucket_of) or batch < 1 or not 0 <= rank < world:
            raise ValueError("a sampler needs examples, a batch of at least 1, and 0 <= rank < world")
        self._whole = batch * world
        self._world, self._rank, self._seeds = world, rank, seeds
        self._numbers, self._showings, counts = _by_bucket(np.asarray(bucket_of), repeats)
        self._starts = np.concatenate(([0], np.cumsum(counts)))  # of each bucket among the showings, and the end
        self._firsts = np.concatenate(([0], np.cumsum(-(-counts // self._whole))))  # the same among the batches
        self._order = lru_cache(maxsize=2)(self._order_of)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches it takes to show every example as often as its repeats; the same in every epoch."""
        return int(self._firsts[-1])

    def largest(self, sizes: Sequence[int]) -> int:
        """The number of a batch in the first epoch that weighs the most.

        Args:
            sizes: what an example of each bucket weighs, by the bucket's number.
        """
        filled = np.minimum(np.diff(self._starts), self._whole)
        heaviest = int(np.argmax(filled * np.asarray(sizes)[self._numbers]))
        return int(np.flatnonzero(self._order(0).batches == self._firsts[heaviest])[0])

    def batch(self, number: int) -> BatchPlan:
        """This process's part of the run's batch `number`."""
        epoch, place = divmod(number, self.batches_per_epoch)
        order = self._order(epoch)
        one = order.batches[place]
        bucket = np.searchsorted(self._firsts, one, side="right") - 1
        start = self._starts[bucket] + (one - self._firsts[bucket]) * self._whole
        whole = order.showings[start : min(start + self._whole, self._starts[bucket + 1])].tolist()
        share = -(-len(whole) // self._world)
        slots = tuple(range(self._rank * share, (self._rank + 1) * share))
        examples = tuple(whole[slot % len(whole)] for slot in slots)
        return BatchPlan(number=number, slots=slots, examples=examples, total=len(whole))

    def _order_of(self, epoch: int) -> _Epoch:
        showings = np.empty_like(self._showings)
        for place, bucket in enumerate(self._numbers.tolist()):
            part = slice(self._starts[place], self._starts[place + 1])
            shown = self._showings[part]
            showings[part] = shown[self._permutation("order", epoch, bucket, length=len(shown))]
        batches = self._permutation("batches", epoch, length=self.batches_per_epoch)
        return _Epoch(showings, batches.astype(_narrowest(self.batches_per_epoch)))

    def _permutation(self, stream: str, *place: int, length: int) -> NDArray[np.int64]:
        """As `Seeds.permutation`, without a list of millions of numbers."""
        return torch.randperm(length, generator=self._seeds.generator(stream, *place)).numpy()


def _by_bucket(
    bucket_of: NDArray[np.integer], repeats: Sequence[int] | NDArray[np.integer] | None
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]:
    """The buckets' numbers, all showings sorted by bucket, and how many showings each bucket has."""
    examples = np.argsort(bucket_of, kind="stable").astype(_narrowest(len(bucket_of)))
    numbers, counts = np.unique(bucket_of, return_counts=True)
    if repeats is None:
        return numbers, examples, counts
    times = np.asarray(repeats)
    if len(times) != len(bucket_of) or times.min() < 1:
        raise ValueError("a sampler needs at least one showing of each example")
    times = times[examples]
    return numbers, np.repeat(examples, times), np.add.reduceat(times, np.cumsum(counts) - counts, dtype=np.int64)


def _narrowest(count: int) -> type[np.integer]:
    """The smallest integers of numpy that can number so many things."""
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64
