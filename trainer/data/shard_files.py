"""One shard of the cache: an Arrow file of keys, contents and checksums; written once, and never changed."""

import mmap
import os
import secrets
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainer.core.files import replacing
from trainer.core.log import logger
from trainer.data.journal import remove_lonely_lock
from trainer.data.shard_rows import KEY_BYTES, NO_ROWS, Numbers, Rows, ShardFacts, Truths, checksum_of

_LAYOUT: Final = b"trainer-shard-1"
_A_DAY: Final = 86_400.0  # seconds; a living process needs some for a file

Arrow = Any
"""Something of pyarrow, which comes without types."""


class ShardError(Exception):
    """A file is no whole shard of ours; the reason is its text."""


def shard_name() -> str:
    """The name of a new shard; no two processes ever get the same."""
    return f"shard-{secrets.token_hex(12)}.arrow"


def write_shard(path: Path, entries: Mapping[bytes, "bytes | memoryview"]) -> None:
    """Write entries as one shard that is whole and on the disk when this returns, or not there.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    with replacing(path) as temporary:
        _write(str(temporary), entries)


def shard_bytes(entries: Mapping[bytes, "bytes | memoryview"]) -> memoryview:
    """What `write_shard` would write."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    _write(sink, entries)
    return memoryview(sink.getvalue())


def read_rows(path: Path) -> Rows:
    """Where a shard's rows lie; no content is read.

    Raises:
        ShardError: it is no whole shard of ours.
        OSError: it is gone, or cannot be opened.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise ShardError("it is empty")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return rows_in(mapped)


def rows_in(whole: "mmap.mmap | bytes | memoryview") -> Rows:
    """Where the rows of a shard lie that is in memory; what lies between them and its end is not looked at.

    Raises:
        ShardError: it is no whole shard of ours.
    """
    import pyarrow

    try:
        return _rows_in(pyarrow.py_buffer(whole))
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        # Here an OSError is Arrow's word for broken content, not the system's.
        raise ShardError(str(error).split("\n")[0]) from error


def read_content(path: Path, offset: int, length: int) -> bytes:
    """A part of a file, or nothing where the file does not reach that far.

    The file is opened for each reading, and not mapped: that costs some microseconds, and neither file handles nor
    memory grow with what was read, and a file that is cut short meanwhile cannot end the process.

    Raises:
        OSError: it is gone, or cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        if offset + length > os.fstat(file.fileno()).st_size:
            return b""
        file.seek(offset)
        content = file.read(length) or b""
        while len(content) < length and (more := file.read(length - len(content))):
            content += more
    return content


def sound_rows(path: Path, rows: Rows) -> Truths:
    """For each row whether its content is still that of its checksum [N].

    Raises:
        OSError: the file is gone, or cannot be read.
    """
    places = zip(rows.offsets.tolist(), rows.lengths.tolist(), rows.checksums.tolist(), strict=True)
    sound = np.zeros(len(rows), dtype=np.bool_)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for number, (offset, length, checksum) in enumerate(places):
            if offset + length <= size:
                file.seek(offset)
                sound[number] = checksum_of(rows.keys[number].tobytes(), file.read(length)) == checksum
    return sound


def remove(path: Path) -> None:
    """Remove a file of the cache; where that cannot be done, it is said."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # another process may have it open, on Windows
        logger.warning("It could not be removed: %s", error)


def open_shard(path: Path) -> tuple[Rows, int]:
    """The rows of a shard and its size; no rows if it is gone, or was no shard and is removed.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return read_rows(path), path.stat().st_size
    except FileNotFoundError:
        return NO_ROWS, 0
    except ShardError as error:
        logger.warning("A damaged or foreign file in the cache is removed and made again: %s (%s)", path.name, error)
    remove(path)
    return NO_ROWS, 0


def compare_shard(path: Path, known: Rows) -> tuple[Rows, int]:
    """Those rows of a shard that are sound, and its size; each is compared with its checksum, and damage is warned of.

    Args:
        path: the shard.
        known: what is known of its rows. It is used if the file no longer tells them, so that none is lost that was
            found to be sound before.

    Raises:
        OSError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        rows = _rows_or(path, known)
        sound = sound_rows(path, rows)
    except FileNotFoundError:
        return NO_ROWS, 0
    count = int((~sound).sum())
    if count:
        logger.warning("Damaged rows in the cache are made again: %d of %d in %s", count, len(rows), path.name)
    if not sound.any():
        remove(path)
    return rows.where(sound), size


def _rows_or(path: Path, known: Rows) -> Rows:
    try:
        return read_rows(path)
    except ShardError as error:
        logger.warning("A file of the cache no longer tells its rows: %s (%s)", path.name, error)
        return known


def list_shards(folder: Path) -> dict[str, ShardFacts]:
    """Name and size of the shards in a folder, older ones first."""
    found: list[tuple[int, ShardFacts]] = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("shard-") and entry.name.endswith(".arrow") and entry.is_file():
                with suppress(FileNotFoundError):  # removed by another process meanwhile
                    facts = entry.stat()
                    found.append((facts.st_mtime_ns, ShardFacts(entry.name, facts.st_size)))
    return {shard.name: shard for _, shard in sorted(found)}


def remove_leftovers(folder: Path) -> None:
    """Take away what killed processes had begun to write."""
    yesterday = time.time() - _A_DAY
    patterns = (".shard-*.tmp", ".index.*.tmp", ".identity.*.tmp", ".tmp*")  # the last is how safetensors begins a file
    for pattern in patterns:
        for leftover in folder.glob(pattern):
            with suppress(OSError):  # another process was quicker
                if leftover.stat().st_mtime < yesterday:
                    leftover.unlink()
    for lock in folder.glob(".journal*.lock"):
        with suppress(OSError):
            if lock.stat().st_mtime < yesterday:
                remove_lonely_lock(lock)


def _write(sink: Any, entries: Mapping[bytes, "bytes | memoryview"]) -> None:  # Any: a path, or a stream of pyarrow
    """Write entries in Arrow's file format.

    The list of rows has a checksum of its own, so that no key, length or checksum can change unnoticed.
    """
    import pyarrow
    import pyarrow.ipc

    keys = b"".join(entries)
    lengths = np.array([len(content) for content in entries.values()], dtype=np.uint32)
    checksums = np.array([checksum_of(key, content) for key, content in entries.items()], dtype=np.uint32)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    schema = _schema().with_metadata({b"layout": _LAYOUT, b"rows": _checksum_of_rows(keys, lengths, checksums)})
    # Out of buffers: from a list, pyarrow would go through objects one by one, and import pandas to do it.
    buffers = ([keys], [checksums], [ends, b"".join(entries.values())])
    columns = [
        pyarrow.Array.from_buffers(field.type, len(entries), [None, *map(pyarrow.py_buffer, parts)])
        for field, parts in zip(schema, buffers, strict=True)
    ]
    with pyarrow.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _schema() -> Arrow:
    import pyarrow

    return pyarrow.schema(
        [
            pyarrow.field("key", pyarrow.binary(KEY_BYTES), nullable=False),
            pyarrow.field("checksum", pyarrow.uint32(), nullable=False),
            pyarrow.field("content", pyarrow.large_binary(), nullable=False),
        ]
    )


def _rows_in(whole: Arrow) -> Rows:
    """The rows of a shard that lies in memory, with their places found by the addresses of Arrow's buffers."""
    import pyarrow.ipc

    table = pyarrow.ipc.open_file(whole).read_all()
    facts = table.schema.metadata or {}
    if not table.schema.equals(_schema()) or facts.get(b"layout") != _LAYOUT:
        raise ShardError("it has another layout")
    table.validate(full=True)  # offsets that point outside would be read without a check
    key, checksum, content = (table.column(name) for name in ("key", "checksum", "content"))
    if any(
        column.num_chunks != 1 or column.null_count or column.chunk(0).offset for column in (key, checksum, content)
    ):
        raise ShardError("its rows are not as we write them")
    count = table.num_rows
    keys = np.frombuffer(key.chunk(0).buffers()[1], dtype=np.uint8, count=count * KEY_BYTES)
    checksums = np.frombuffer(checksum.chunk(0).buffers()[1], dtype=np.uint32, count=count)
    _, ends, data = content.chunk(0).buffers()
    ends = np.frombuffer(ends, dtype=np.int64, count=count + 1)
    lengths = np.diff(ends).astype(np.uint32)
    if _checksum_of_rows(keys.tobytes(), lengths, checksums) != facts.get(b"rows"):
        raise ShardError("the checksum of its rows is not theirs")
    start = data.address - whole.address if data is not None and data.size else 0
    if not 0 <= start + ends[0] <= start + ends[-1] <= whole.size:
        raise ShardError("its contents lie outside of it")
    # Copies: what stays behind must not hold the file's mapping.
    return Rows(keys.reshape(count, KEY_BYTES).copy(), (start + ends[:-1]).astype(np.uint64), lengths, checksums.copy())


def _checksum_of_rows(keys: bytes, lengths: Numbers, checksums: Numbers) -> bytes:
    total = zlib.crc32(checksums.tobytes(), zlib.crc32(lengths.tobytes(), zlib.crc32(keys)))
    return f"{total:08x}".encode("ascii")
