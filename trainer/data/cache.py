"""Latents and text states on disk, keyed by everything that shapes them; Arrow files, memory-mapped.

A cache is a folder of shards. A shard is written under a temporary name, flushed, and renamed; it is never changed.
Each row carries its own checksum. So a kill loses the rows of one unwritten shard, two processes may fill one cache,
and what is damaged is found before it is used.
"""

import hashlib
import json
import secrets
import time
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from trainer.core.errors import TrainerError
from trainer.core.files import replacing, write_atomically
from trainer.core.log import logger

_COLUMNS: Final = {"key": "string", "shapes": "string", "content": "binary", "checksum": "int64"}
_LAYOUT: Final = "float16-1"  # part of every key: change it when rows are written in another way

Table = Any
"""A pyarrow.Table; pyarrow comes without types."""

Entry = Mapping[str, Tensor]
"""Named tensors of one picture or one text; kept as float16."""


def cache_key(*parts: str | int | bool) -> str:
    """A digest of everything that shapes an entry: content, sizes, rules, versions, the encoder's identity."""
    return hashlib.sha256(json.dumps([_LAYOUT, *parts]).encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class _Row:
    table: Table
    shard: Path
    number: int


class TensorCache:
    """Entries of one encoder, in a folder of its own below `root`."""

    def __init__(self, root: Path, identity: str, memory: int = 0) -> None:
        """Open the cache, or begin it; shards that cannot be read are removed with a warning.

        Args:
            root: the folder of all caches.
            identity: what the encoder calls itself; names the folder.
            memory: how many bytes of entries to keep once they were read.

        Raises:
            TrainerError: the folder cannot be written.
        """
        self.folder = root / hashlib.sha256(identity.encode("utf-8")).hexdigest()[:16]
        self._rows: dict[str, list[_Row]] = {}
        self._shards: set[str] = set()
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._free = memory
        if not (self.folder / "identity.txt").exists():
            with self._writing():
                write_atomically(self.folder / "identity.txt", identity + "\n")
        _remove_leftovers(self.folder)
        self.refresh()

    def __len__(self) -> int:
        """How many keys there are, whether or not their rows are sound."""
        return len(self._rows)

    def keys(self) -> list[str]:
        """All keys, whether or not their rows are sound."""
        return sorted(self._rows)

    def __contains__(self, key: str) -> bool:
        """Whether there is a row for this key, sound or not; costs nothing."""
        return bool(self._rows.get(key))

    def refresh(self) -> None:
        """See also what other processes have written since."""
        for shard in sorted(self.folder.glob("shard-*.arrow")):
            if shard.name in self._shards:
                continue
            table = _open_shard(shard)
            if table is None:
                _remove(shard)
                continue
            self._shards.add(shard.name)
            for number, key in enumerate(table.column("key").to_pylist()):
                self._rows.setdefault(key, []).append(_Row(table, shard, number))

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The entry in float32, or None if it is not there or damaged; damage is warned of."""
        kept = self._kept.get(key)
        if kept is None:
            kept = self._read_sound(key)
            if kept is None:
                return None
            size = sum(tensor.nbytes for tensor in kept.values())
            if size <= self._free:
                self._kept[key] = kept
                self._free -= size
        # By numpy: torch wakes all its threads for this, which costs milliseconds on busy cores.
        return {name: torch.from_numpy(tensor.numpy().astype(np.float32)) for name, tensor in kept.items()}

    def holds(self, key: str) -> bool:
        """Whether the entry is there and sound: its bytes are read and compared with its checksum."""
        return key in self._kept or self._read_sound(key) is not None

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Add entries as one new shard; they are on the disk when this returns.

        Raises:
            TrainerError: the disk is full or cannot be written; nothing is then left behind.
        """
        if not entries:
            return
        from datasets.arrow_writer import ArrowWriter

        from datasets import Features, Value

        shard = self.folder / f"shard-{secrets.token_hex(12)}.arrow"
        features = Features({name: Value(kind) for name, kind in _COLUMNS.items()})
        with self._writing(), replacing(shard) as temporary:
            writer = ArrowWriter(path=str(temporary), features=features)
            try:
                for key, entry in entries.items():
                    writer.write(_as_row(key, entry))
                writer.finalize()
            finally:
                writer.close()
        self.refresh()

    @contextmanager
    def _writing(self) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            raise TrainerError(
                f"The cache cannot be written: {error.strerror or error}.",
                where=str(self.folder),
                mend="Make room, or choose another folder with data.cache.folder=FOLDER; what is there is kept.",
            ) from error

    def _read_sound(self, key: str) -> dict[str, Tensor] | None:
        rows = self._rows.get(key, [])
        while rows:
            row = rows[-1]
            entry = _from_row(key, row)
            if entry is not None:
                return entry
            logger.warning("A damaged row in the cache is made again: %s", row.shard.name)
            rows.pop()
        return None


def _as_row(key: str, entry: Entry) -> dict[str, str | bytes | int]:
    halves = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in entry.items()}
    shapes = json.dumps([[name, list(half.shape)] for name, half in halves.items()])
    content = b"".join(half.numpy().tobytes() for half in halves.values())
    return {"key": key, "shapes": shapes, "content": content, "checksum": _checksum(key, shapes, content)}


def _from_row(key: str, row: _Row) -> dict[str, Tensor] | None:
    """The tensors of a row, in memory of their own, or None if its checksum is not that of its bytes."""
    shapes = row.table.column("shapes")[row.number].as_py()
    content = row.table.column("content")[row.number].as_buffer()
    if content is None or row.table.column("checksum")[row.number].as_py() != _checksum(key, shapes, content):
        return None
    numbers = np.frombuffer(content, dtype=np.float16).copy()  # a copy: the mapped file is read-only
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, shape in json.loads(shapes):
        length = int(np.prod(shape))
        tensors[name] = torch.from_numpy(numbers[start : start + length].reshape(shape))
        start += length
    return tensors


def _checksum(key: str, shapes: str | None, content: "bytes | memoryview") -> int:
    return zlib.crc32(content, zlib.crc32(f"{key} {shapes}".encode()))


def _open_shard(shard: Path) -> Table | None:
    """The rows of a shard, mapped and not yet read; None if it is no whole shard of ours."""
    import pyarrow

    from datasets import Dataset

    try:
        table = Dataset.from_file(str(shard)).data.table
        table.validate(full=True)  # offsets that point outside would be read without a check
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("A damaged file of the cache is removed and made again: %s (%s)", shard.name, error)
        return None
    if {field.name: str(field.type) for field in table.schema} != _COLUMNS:
        logger.warning("A foreign file in the cache is removed: %s", shard.name)
        return None
    return table


def _remove(shard: Path) -> None:
    try:
        shard.unlink(missing_ok=True)
    except OSError as error:  # another process may have it open, on Windows
        logger.warning("It could not be removed: %s", error)


def _remove_leftovers(folder: Path) -> None:
    """Take away what killed processes had begun to write; a living one needs seconds for a shard, not a day."""
    yesterday = time.time() - 86_400
    for leftover in folder.glob(".shard-*.tmp"):
        with suppress(OSError):  # another process was quicker
            if leftover.stat().st_mtime < yesterday:
                leftover.unlink()
