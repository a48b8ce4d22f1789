"""Any number of small contents on disk, found by key: shards that are never changed, and an index as a shortcut.

A shard is written under a temporary name, flushed, and renamed. Each row carries its own checksum. So a kill loses the
rows of one unwritten shard, two processes may fill one folder, and what is damaged is found before it is used. The
index holds nothing that the shards do not: it may be old, damaged or gone.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from trainer.data.shard_folders import LocalFolder, Opened, ShardFolder, Span
from trainer.data.shard_index import Place, RowIndex
from trainer.data.shard_rows import Rows, ShardFacts, Truths, checksum_of, joined_rows, raw_key, raw_keys

_KEYS_AT_ONCE: Final = 65_536
_SMALL_CHANGE: Final = 16  # shards that may be missing from the index before it is written again
_SMALL_SHARE: Final = 8  # or an eighth of all: so a filling writes the index a few times, at any size


class ShardStore:
    """The contents of one folder, by keys of 64 hexadecimal characters; any number of threads may read and write."""

    def __init__(self, folder: Path | ShardFolder) -> None:
        """Open the folder, which need not exist yet; files that are no whole shards do not count, and are warned of.

        Raises:
            TrainerError: the folder or a file in it cannot be read.
        """
        self.folder = LocalFolder(folder) if isinstance(folder, Path) else folder
        self._lock = threading.RLock()
        self._shards: list[ShardFacts] = []  # by number
        self._numbers: dict[str, int] = {}  # by name; of those that are alive
        self._dead: set[int] = set()  # numbers whose rows no longer count
        self._parts: tuple[RowIndex, ...] = ()  # older ones first
        self._unsaved = 0  # shards that the index file does not know rightly
        self._load()
        self.folder.tidy()
        self.refresh()

    def __len__(self) -> int:
        """How many keys there are, whether or not their contents are sound."""
        return int(self._settled().distinct().sum())

    def __contains__(self, key: str) -> bool:
        """Whether there is a row for this key, sound or not; nothing is read from the shards."""
        return self._youngest(raw_key(key)) is not None

    @property
    def shards(self) -> list[ShardFacts]:
        """Name and size of each shard."""
        return [self._shards[number] for number in self._numbers.values()]

    def keys(self) -> list[str]:
        """All keys, sorted."""
        index = self._settled()
        return sorted(key.tobytes().hex() for key in index.keys[index.distinct()])

    def known(self, keys: Sequence[str]) -> Truths:
        """For each key whether there is a row, sound or not; some tenths of a microsecond a key.

        Returns:
            [len(keys)] of bool.
        """
        pieces = (self._known(keys[start : start + _KEYS_AT_ONCE]) for start in range(0, len(keys), _KEYS_AT_ONCE))
        return np.concatenate([np.zeros(0, dtype=np.bool_), *pieces])

    def get(self, key: str) -> bytes | None:
        """The content under this key, or None if it is not there or damaged; damage is warned of.

        Raises:
            TrainerError: the system cannot read the file.
        """
        raw = raw_key(key)
        while (place := self._youngest(raw)) is not None:
            content = self._content(raw, place)
            if content is not None:
                return content
        return None  # each place that failed was taken out of the index

    def get_all(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The sound contents of these keys, read together; without those that are not there or damaged.

        Raises:
            TrainerError: the system cannot read a file.
        """
        places = [(key, place) for key in keys if (place := self._youngest(raw_key(key))) is not None]
        contents = self.folder.read([self._span(place) for _, place in places])
        found: dict[str, bytes] = {}
        for (key, place), read in zip(places, contents, strict=True):
            content = read if _is_sound(raw_key(key), place, read) else self.get(key)
            if content is not None:
                found[key] = content
        return found

    def write(self, entries: Mapping[str, "bytes | memoryview"]) -> None:
        """Add entries as one new shard; they are on the disk when this returns.

        Of several entries under one key the youngest counts.

        Raises:
            TrainerError: the disk is full or cannot be written; nothing is then left behind.
        """
        if not entries:
            return
        written = self.folder.write({raw_key(key): content for key, content in entries.items()})
        with self._lock:
            self._add([written])
            self._save_if_much()

    def refresh(self) -> None:
        """See also what other processes have written or removed since.

        Raises:
            TrainerError: the folder or a file in it cannot be read.
        """
        with self._lock:
            self._look()
            self._save_if_much()

    def save_index(self) -> None:
        """Write the index if it has changed; what other processes have written meanwhile is in it too."""
        with self._lock:
            self._look()
            if self._unsaved:
                self._save()

    def _known(self, keys: Sequence[str]) -> Truths:
        wanted = raw_keys(keys)
        with self._lock:
            parts, dead = self._parts, np.array(sorted(self._dead), dtype=np.uint32)
        known = np.zeros(len(keys), dtype=np.bool_)
        unsure = np.zeros(len(keys), dtype=np.bool_)
        for part in parts:
            there, maybe, shards = part.look_up(wanted)
            if len(dead):
                there &= ~np.isin(shards, dead)
            known |= there
            unsure |= maybe
        for place in np.flatnonzero(unsure & ~known):
            known[place] = self._youngest(wanted[place].tobytes()) is not None
        return known

    def _youngest(self, key: bytes) -> Place | None:
        while True:
            parts = self._parts
            for part in reversed(parts):
                for place in part.find(key):
                    if place.shard not in self._dead:
                        return place
            if parts is self._parts:  # otherwise rows were taken up meanwhile, and may replace dead ones
                return None

    def _span(self, place: Place) -> Span:
        return Span(self._shards[place.shard].name, place.offset, place.length)

    def _content(self, key: bytes, place: Place) -> bytes | None:
        """The content at a place; None, and the place no longer in the index, if it is not what it should be."""
        (content,) = self.folder.read([self._span(place)])
        if content is None:
            self.refresh()  # another process has removed the shard, and may have written its rows anew
            return None
        if _is_sound(key, place, content):
            return content
        self._examine(place.shard)
        return None

    def _examine(self, number: int) -> None:
        """Look at all rows of a shard that is not as the index says, and keep those that are sound."""
        with self._lock:
            if number in self._dead:  # another thread was quicker
                return
            name = self._shards[number].name
            known = joined_rows([part.rows_of(number) for part in self._parts])
            compared = self.folder.compare(name, known)
            # The sound rows are there anew before the old ones go: readers do not wait for the lock.
            del self._numbers[name]
            self._add([compared])
            self._dead.add(number)
            self._unsaved += 1
            self._save_if_much()

    def _look(self) -> None:
        """Compare what is known with the folder's list of names."""
        listed = self.folder.listing()
        gone = [name for name, number in self._numbers.items() if listed.get(name) != self._shards[number]]
        for name in gone:
            self._forget(name)
        self._add(self.folder.open([shard for name, shard in listed.items() if name not in self._numbers]))

    def _add(self, opened: Sequence[Opened]) -> None:
        """Take up shards, older ones first."""
        added: list[tuple[int, Rows]] = []
        for shard in opened:
            if len(shard.rows) and shard.name not in self._numbers:  # another thread may have seen it first
                self._numbers[shard.name] = len(self._shards)
                added.append((len(self._shards), shard.rows))
                self._shards.append(ShardFacts(shard.name, shard.size))
        if added:
            self._unsaved += len(added)
            self._parts = _with(self._parts, RowIndex.of(added))

    def _forget(self, name: str) -> None:
        # The rows stay in the index until it is settled; numbers are never given twice, so a reader is not misled.
        self._dead.add(self._numbers.pop(name))
        self._unsaved += 1

    def _settled(self) -> RowIndex:
        """All rows that count in one index."""
        with self._lock:
            whole = RowIndex.merged(self._parts) if len(self._parts) > 1 else (self._parts or (RowIndex.of([]),))[0]
            dead = np.isin(whole.shards, np.array(sorted(self._dead), dtype=np.uint32))
            if dead.any():
                whole = whole.at(~dead)
            self._parts = (whole,)
            return whole

    def _load(self) -> None:
        """Begin with what the index file says, if it can be trusted."""
        loaded = self.folder.load_index()
        if loaded is not None:
            self._shards, self._parts = loaded[0], (loaded[1],)
            self._numbers = {shard.name: number for number, shard in enumerate(self._shards)}

    def _save_if_much(self) -> None:
        if self._unsaved >= max(_SMALL_CHANGE, len(self._numbers) // _SMALL_SHARE):
            self._save()

    def _save(self) -> None:
        alive = np.zeros(len(self._shards), dtype=np.uint32)
        alive[list(self._numbers.values())] = np.arange(len(self._numbers), dtype=np.uint32)
        self.folder.save_index(self.shards, self._settled().numbered(alive))
        self._unsaved = 0


def _is_sound(key: bytes, place: Place, content: bytes | None) -> bool:
    return content is not None and len(content) == place.length and checksum_of(key, content) == place.checksum


def _with(parts: tuple[RowIndex, ...], newer: RowIndex) -> tuple[RowIndex, ...]:
    """The parts of an index and one more; each is kept twice as long as the next, so that there are few."""
    together = [*parts, newer]
    while len(together) > 1 and len(together[-2]) < 2 * len(together[-1]):
        together[-2:] = [RowIndex.merged(together[-2:])]
    return tuple(together)
