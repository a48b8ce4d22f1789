"""Where the rows of many shards lie, sorted by key; in memory, or mapped from a file that can be made again."""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np

from trainer.core.files import replacing
from trainer.data.shard_rows import KEY_BYTES, Bytes, Numbers, Rows, ShardFacts, Truths, joined_rows

INDEX_NAME: Final = "index.safetensors"
_LAYOUT: Final = "trainer-index-1"
_HEAD_BYTES: Final = 8
_PIECE: Final = 1 << 20
_IN_FILE: Final = {
    # Signed there, since not every reader of safetensors knows the unsigned ones.
    "heads": ("I64", np.int64, np.uint64),
    "keys": ("U8", np.uint8, np.uint8),
    "shards": ("I32", np.int32, np.uint32),
    "offsets": ("I64", np.int64, np.uint64),
    "lengths": ("I32", np.int32, np.uint32),
    "checksums": ("I32", np.int32, np.uint32),
}


class IndexFileError(Exception):
    """A file is no whole index of ours; the reason is its text."""


class Place(NamedTuple):
    """Where the content of one row lies."""

    shard: int
    offset: int  # its first byte in the file
    length: int  # bytes
    checksum: int


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Rows of numbered shards, sorted by key; of several under one key the youngest is the last. N rows."""

    heads: Numbers  # [N] uint64: the first 8 bytes of the keys, by which they are sorted
    keys: Bytes  # [N 32]
    shards: Numbers  # [N] uint32
    offsets: Numbers  # [N] uint64
    lengths: Numbers  # [N] uint32
    checksums: Numbers  # [N] uint32

    @classmethod
    def of(cls, shards: Sequence[tuple[int, Rows]]) -> "RowIndex":
        """An index of shards, given as (number, rows), older ones first."""
        rows = joined_rows([rows for _, rows in shards])
        numbers = np.repeat([number for number, _ in shards], [len(rows) for _, rows in shards]).astype(np.uint32)
        index = cls(_heads(rows.keys), rows.keys, numbers, rows.offsets, rows.lengths, rows.checksums)
        return index.at(_order(index.heads, index.keys))

    @classmethod
    def merged(cls, parts: Sequence["RowIndex"]) -> "RowIndex":
        """The rows of several indices in one, older ones first."""
        together = cls(
            *(np.concatenate([column[n] for column in map(_columns, parts)]) for n in range(len(fields(cls))))
        )
        return together.at(_order(together.heads, together.keys))

    def __len__(self) -> int:
        """How many rows there are, several under one key counted each."""
        return len(self.heads)

    def at(self, chosen: Numbers) -> "RowIndex":
        """The rows at places [M], or those for which truths [N] are true."""
        return RowIndex(*(column[chosen] for column in _columns(self)))

    def numbered(self, numbers: Numbers) -> "RowIndex":
        """The same with shard k called numbers[k]."""
        return RowIndex(self.heads, self.keys, numbers[self.shards], self.offsets, self.lengths, self.checksums)

    def rows_of(self, number: int) -> Rows:
        """The rows of one shard."""
        chosen = self.shards == number
        return Rows(self.keys[chosen], self.offsets[chosen], self.lengths[chosen], self.checksums[chosen])

    def find(self, key: bytes) -> list[Place]:
        """Where the rows of a key lie, the youngest first."""
        head = np.frombuffer(key, dtype=np.uint64, count=1)
        first = int(self.heads.searchsorted(head)[0])
        found: list[Place] = []
        while first < len(self.heads) and self.heads[first] == head[0]:
            if self.keys[first].tobytes() == key:
                columns = (self.shards, self.offsets, self.lengths, self.checksums)
                found.append(Place(*(int(column[first]) for column in columns)))
            first += 1
        return found[::-1]

    def look_up(self, keys: Bytes) -> tuple[Truths, Truths, Numbers]:
        """For each of many keys [M 32]: is it surely there, may it be there, and in which shard [M each].

        "May be" is said of the one in 2^64 that shares its first bytes with another; ask `find` then.
        """
        if not len(self):
            none = np.zeros(len(keys), dtype=np.bool_)
            return none, none, np.zeros(len(keys), dtype=np.uint32)
        heads = _heads(keys)
        order = np.argsort(heads)  # in order they are found several times as fast
        places = np.zeros(len(keys), dtype=np.int64)
        places[order] = self.heads.searchsorted(heads[order])
        places = np.minimum(places, len(self) - 1)
        maybe = self.heads[places] == heads
        return maybe & (self.keys[places] == keys).all(axis=1), maybe, self.shards[places]

    def distinct(self) -> Truths:
        """For each row whether it is the youngest of its key [N]."""
        last = np.ones(len(self), dtype=np.bool_)
        last[:-1] = (self.keys[1:] != self.keys[:-1]).any(axis=1)
        return last


def save_index(path: Path, shards: Sequence[ShardFacts], index: RowIndex) -> None:
    """Write an index as a safetensors file with a checksum over all of it, atomically.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    named = json.dumps(shards)
    total = zlib.crc32(named.encode("utf-8"))
    tensors: dict[str, Numbers] = {}
    for (name, (_, signed, _)), column in zip(_IN_FILE.items(), _columns(index), strict=True):
        tensors[name] = np.ascontiguousarray(column).view(signed)
        total = zlib.crc32(tensors[name].data, total)
    facts = {"layout": _LAYOUT, "shards": named, "checksum": f"{total:08x}"}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=facts)
    except SafetensorError as error:  # its word for a full disk
        raise OSError(str(error)) from error


def load_index(path: Path) -> tuple[list[ShardFacts], RowIndex]:
    """The shards that an index file names, and its rows, mapped: what is not asked for takes no memory.

    Raises:
        IndexFileError: it is no whole index of ours.
        OSError: it is gone, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _read_index(path, file)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise IndexFileError(f"{type(error).__name__}: {error}") from error


def _read_index(path: Path, file: IO[bytes]) -> tuple[list[ShardFacts], RowIndex]:
    size = path.stat().st_size
    length = struct.unpack("<Q", file.read(8))[0]
    if length > size - 8:
        raise IndexFileError("its header does not fit into it")
    header: dict[str, Any] = json.loads(file.read(length))
    facts = header["__metadata__"]
    if facts.get("layout") != _LAYOUT:
        raise IndexFileError("it has another layout")
    named = str(facts["shards"])
    total = zlib.crc32(named.encode("utf-8"))
    whole = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    columns: dict[str, Numbers] = {}
    for name, (word, _, kind) in _IN_FILE.items():
        tensor = header[name]
        begin, end = (8 + length + int(place) for place in tensor["data_offsets"])
        shape = tuple(int(side) for side in tensor["shape"])
        if tensor["dtype"] != word or not 0 <= begin <= end <= size:
            raise IndexFileError(f"{name} is not as we write it")
        # Read in pieces: a checksum over the mapped file would bring all of it into memory.
        total = _checksum_of(file, begin, end, total)
        columns[name] = whole[begin:end].view(kind).reshape(shape)
    index = RowIndex(**columns)
    shards = [ShardFacts(str(name), int(size)) for name, size in json.loads(named)]
    if f"{total:08x}" != facts["checksum"]:
        raise IndexFileError("its checksum is not that of its bytes")
    _check_shapes(index, len(shards))
    return shards, index


def _check_shapes(index: RowIndex, shards: int) -> None:
    count = len(index)
    shapes = [column.shape for column in _columns(index)]
    if shapes != [(count,), (count, KEY_BYTES), *[(count,)] * 4] or (count and int(index.shards.max()) >= shards):
        raise IndexFileError("its columns do not fit together")


def _checksum_of(file: IO[bytes], begin: int, end: int, total: int) -> int:
    file.seek(begin)
    while begin < end and (piece := file.read(min(_PIECE, end - begin))):
        total = zlib.crc32(piece, total)
        begin += len(piece)
    return total


def _columns(index: RowIndex) -> tuple[Numbers, ...]:
    return index.heads, index.keys, index.shards, index.offsets, index.lengths, index.checksums


def _heads(keys: Bytes) -> Numbers:
    return np.ascontiguousarray(keys[:, :_HEAD_BYTES]).view(np.uint64).reshape(-1)


def _order(heads: Numbers, keys: Bytes) -> Numbers:
    """The order of keys; equal ones stay as they are."""
    order = np.argsort(heads, kind="stable")
    heads, keys = heads[order], keys[order]
    strangers = (heads[1:] == heads[:-1]) & (keys[1:] != keys[:-1]).any(axis=1)
    if not strangers.any():
        return order
    words = np.ascontiguousarray(keys).view(np.uint64)  # [N 4]; the first is the head
    return order[np.lexsort(words.T[::-1])]
