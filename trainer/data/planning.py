"""Which entries of the cache a dataset needs, and which process makes which of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.batch import Encoders
from trainer.data.batches import DataSettings, picture_key
from trainer.data.buckets import Bucket
from trainer.data.cropping import Cut
from trainer.data.decoder import PictureWork
from trainer.data.encoding import at_once
from trainer.data.example import Example
from trainer.data.examples import ExampleTable

_CHUNK: Final = 4096  # pictures looked at together
_TURN: Final = 16  # pictures whose presence is looked at again together, right before they are made

Known = Callable[[Sequence[str]], Iterable[bool]]
"""Which of these keys are in the cache; as many answers as keys."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the work this process does, of several that fill one cache together."""

    rank: int = 0
    world: int = 1

    def takes(self, blocks: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of the blocks of work with these numbers are this process's; each block is exactly one process's.

        By the number among all blocks, done or not, so that it does not matter how far the others are.
        """
        return blocks % self.world == self.rank


class Counts(NamedTuple):
    """Of one process's share."""

    needed: int
    missing: int


class PicturePlan:
    """The entries of all pictures: each distinct one exactly once, bucket by bucket.

    For millions of pictures: keeps a few numbers a picture; keys and works are made when their turn comes.
    """

    def __init__(
        self, examples: ExampleTable, settings: DataSettings, encoders: Encoders, batch: int, share: Share
    ) -> None:
        """Plan for `examples`; `batch` as for `DataSettings.buckets_of`."""
        self._examples, self._settings = examples, settings
        self._identity = encoders.pictures_identity
        buckets = settings.buckets_of(examples, encoders.scale, batch)
        names = sorted(set(buckets))
        numbers = {bucket: number for number, bucket in enumerate(names)}
        bucket_of = np.fromiter((numbers[bucket] for bucket in buckets), np.int32, len(buckets))
        self._order = np.argsort(bucket_of, kind="stable")  # places of examples, bucket by bucket
        self._bucket_of, self._buckets = bucket_of[self._order], names
        self._mine = share.takes(self._blocks())
        self._claims: dict[str, int] = {}  # of pictures that stand in the table more than once: key -> who makes it

    def keys(self) -> Iterator[str]:
        """The keys of all entries that a run can ask for, of any process; those of equal pictures more than once."""
        for _, _, entries in self._entries(np.arange(len(self._order))):
            yield from (key for _, key in entries)

    def missing(self, known: Known, tell: Callable[[int, int], None]) -> tuple[NDArray[np.int64], Counts]:
        """The positions of this process's share where entries are missing, and how many entries they are.

        Args:
            known: which keys are there.
            tell: told (how many pictures have been looked at, how many there are).
        """
        self._claims = self._claimed()
        mine = np.flatnonzero(self._mine)
        lacking: list[int] = []
        needed = missing = 0
        for start in range(0, len(mine), _CHUNK):
            rows = [
                (position, self._own(position, e)) for position, _, e in self._entries(mine[start : start + _CHUNK])
            ]
            there = iter(known([key for _, entries in rows for _, key in entries]))
            for position, entries in rows:
                absent = sum(not next(there) for _ in entries)
                needed, missing = needed + len(entries), missing + absent
                if absent:
                    lacking.append(position)
            tell(min(start + _CHUNK, len(mine)), len(mine))
        return np.array(lacking, dtype=np.int64), Counts(needed, missing)

    def works(self, positions: NDArray[np.int64], known: Known) -> Iterator[PictureWork]:
        """What is to be done at these positions, leaving out what is known when its turn comes."""
        for start in range(0, len(positions), _TURN):
            rows = [
                (position, example, self._own(position, entries))
                for position, example, entries in self._entries(positions[start : start + _TURN])
            ]
            there = iter(known([key for _, _, entries in rows for _, key in entries]))
            for position, example, entries in rows:
                absent = [entry for entry in entries if not next(there)]
                if absent:
                    yield PictureWork(
                        example=example,
                        bucket=self._bucket(position),
                        cuts=tuple(cut for cut, _ in absent),
                        keys=tuple(key for _, key in absent),
                    )

    def _entries(self, positions: NDArray[np.int64]) -> Iterator[tuple[int, Example, list[tuple[Cut, str]]]]:
        """Position, example, and the cuts and keys of its entries."""
        for start in range(0, len(positions), _CHUNK):
            some = positions[start : start + _CHUNK]
            for position, example in zip(some.tolist(), self._examples.take(self._order[some]), strict=True):
                yield position, example, self._keys_of(example, self._bucket(position))

    def _keys_of(self, example: Example, bucket: Bucket) -> list[tuple[Cut, str]]:
        dtype = self._settings.cache.dtype
        cuts = self._settings.cuts_of(example, bucket)
        return [(cut, picture_key(example, bucket, cut, self._identity, dtype)) for cut in cuts]

    def _own(self, position: int, entries: list[tuple[Cut, str]]) -> list[tuple[Cut, str]]:
        """The entries that no equal picture makes."""
        return [(cut, key) for cut, key in entries if self._claims.get(key, position) == position]

    def _claimed(self) -> dict[str, int]:
        """Of pictures that stand in the table more than once, which one makes which entry: the first that needs it."""
        contents = np.zeros(len(self._order), np.uint64)  # 64 bits of each content key
        for start in range(0, len(self._order), _CHUNK):
            some = self._examples.take(self._order[start : start + _CHUNK])
            contents[start : start + len(some)] = [int(example.key[:16], 16) for example in some]
        _, inverse, counts = np.unique(contents, return_inverse=True, return_counts=True)
        claims: dict[str, int] = {}
        for position, _, entries in self._entries(np.flatnonzero(counts[inverse] > 1)):
            for _, key in entries:
                claims.setdefault(key, position)
        return claims

    def _blocks(self) -> NDArray[np.int64]:
        """The number of the block of work in which each position lies: as many of one bucket as are encoded at once."""
        blocks = np.zeros(len(self._order), np.int64)
        first = 0
        for number, bucket in enumerate(self._buckets):
            inside = np.flatnonzero(self._bucket_of == number)
            blocks[inside] = first + np.arange(len(inside)) // at_once(bucket)
            first = int(blocks[inside[-1]]) + 1
        return blocks

    def _bucket(self, position: int) -> Bucket:
        return self._buckets[self._bucket_of[position]]
