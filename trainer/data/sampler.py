"""Which examples form which batch: bucketed, shared among processes, and known from the batch's number alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from trainer.core.seeds import Seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """One process's part of one batch."""

    number: int  # counts the batches of the run
    slots: tuple[int, ...]  # places in the whole batch over all processes
    instances: tuple[int, ...]  # what stands there; from slot `total` on it is filling, of weight 0
    total: int  # instances in the whole batch, without filling


class BucketSampler:
    """The order of a run. Each epoch shows every instance exactly once, in batches out of one bucket each.

    An instance is one showing of an example: an example with 4 repeats has 4. The last batch of a bucket may be
    smaller; none is dropped. With several processes each gets the same number of examples of every batch; where the
    last ones do not suffice, early ones of the same batch are shown again as filling.
    """

    def __init__(self, bucket_of: Sequence[int], batch: int, seeds: Seeds, *, world: int = 1, rank: int = 0) -> None:
        """Plan for instances in the buckets `bucket_of`, `batch` of them a process.

        Raises:
            ValueError: there is no instance, or batch, world and rank do not fit together.
        """
        if not bucket_of or batch < 1 or not 0 <= rank < world:
            raise ValueError("a sampler needs instances, a batch of at least 1, and 0 <= rank < world")
        self._whole = batch * world
        self._world, self._rank, self._seeds = world, rank, seeds
        self._buckets: dict[int, list[int]] = {}
        for instance, bucket in enumerate(bucket_of):
            self._buckets.setdefault(bucket, []).append(instance)
        self._order = lru_cache(maxsize=2)(self._order_of)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches it takes to show every instance once; the same in every epoch."""
        return sum(-(-len(instances) // self._whole) for instances in self._buckets.values())

    def batch(self, number: int) -> BatchPlan:
        """This process's part of the run's batch `number`."""
        epoch, place = divmod(number, self.batches_per_epoch)
        whole = self._order(epoch)[place]
        share = -(-len(whole) // self._world)
        slots = tuple(range(self._rank * share, (self._rank + 1) * share))
        instances = tuple(whole[slot % len(whole)] for slot in slots)
        return BatchPlan(number=number, slots=slots, instances=instances, total=len(whole))

    def _order_of(self, epoch: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for bucket, instances in sorted(self._buckets.items()):
            order = self._seeds.permutation("order", epoch, bucket, length=len(instances))
            shuffled = [instances[place] for place in order]
            batches += [shuffled[start : start + self._whole] for start in range(0, len(shuffled), self._whole)]
        return [batches[place] for place in self._seeds.permutation("batches", epoch, length=len(batches))]
