"""What is known of the rows of a shard, in columns; and keys as 32 bytes."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

KEY_BYTES: Final = 32

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Numbers = np.ndarray[Any, np.dtype[Any]]
"""An array of whole numbers; which ones is said where it is kept."""
Truths = np.ndarray[Any, np.dtype[np.bool_]]


class ShardFacts(NamedTuple):
    """A shard as the folder's list of names shows it."""

    name: str
    size: int  # bytes of the file


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of one shard lie in its file, without their contents; all columns have N rows."""

    keys: Bytes  # [N 32]
    offsets: Numbers  # [N] uint64: the content's first byte in the file
    lengths: Numbers  # [N] uint32: bytes of the content
    checksums: Numbers  # [N] uint32: CRC-32 of key and content

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.keys)

    def where(self, chosen: Truths) -> "Rows":
        """The rows for which `chosen` [N] is true."""
        return Rows(self.keys[chosen], self.offsets[chosen], self.lengths[chosen], self.checksums[chosen])


NO_ROWS: Final = Rows(
    np.zeros((0, KEY_BYTES), np.uint8), np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.uint32)
)

NO_TRUTHS: Final[Truths] = np.zeros(0, dtype=np.bool_)


def joined_rows(pieces: Sequence[Rows]) -> Rows:
    """The rows of all pieces."""
    pieces = (NO_ROWS, *pieces)
    return Rows(
        np.concatenate([piece.keys for piece in pieces]),
        np.concatenate([piece.offsets for piece in pieces]),
        np.concatenate([piece.lengths for piece in pieces]),
        np.concatenate([piece.checksums for piece in pieces]),
    )


def raw_key(key: str) -> bytes:
    """The 32 bytes of a key.

    Raises:
        ValueError: it is not 64 hexadecimal characters.
    """
    raw = bytes.fromhex(key)
    if len(raw) != KEY_BYTES or len(key) != 2 * KEY_BYTES:
        raise ValueError(f"a key has 64 hexadecimal characters, and {key!r} has not")
    return raw


def raw_keys(keys: Sequence[str]) -> Bytes:
    """The same for many keys [M 32]."""
    if any(len(key) != 2 * KEY_BYTES for key in keys):
        raise ValueError("a key has 64 hexadecimal characters")
    return np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(len(keys), KEY_BYTES)


def checksum_of(key: bytes, content: "bytes | memoryview") -> int:
    """CRC-32 of a key of 32 bytes and its content."""
    return zlib.crc32(content, zlib.crc32(key))
