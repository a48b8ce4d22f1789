"""A folder of shards on object storage, such as s3://bucket/prefix, through fsspec.

Shards suit it: an object appears whole or not at all, and no shard is ever changed or renamed. Locks, which such
storage does not have, are not needed: each writer uses names of its own, and the index is only a shortcut, of which
the last one written counts.
"""

import mmap
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from typing_extensions import override

from trainer.core.errors import TrainerError
from trainer.core.files import write_atomically
from trainer.core.log import logger
from trainer.data.shard_files import ShardError, rows_in, shard_bytes, shard_name
from trainer.data.shard_folders import IDENTITY_NAME, Index, Opened, ShardFolder, Span
from trainer.data.shard_index import INDEX_NAME, IndexFileError, RowIndex, load_index, save_index
from trainer.data.shard_rows import NO_ROWS, NO_TRUTHS, Rows, ShardFacts, Truths, checksum_of
from trainer.data.storage import asking, file_system, is_past_the_end

_HEAD: Final = 128 * 1024  # bytes; the rows of a shard of 64 MiB lie in them, but for tiny entries
_TAIL: Final = 16 * 1024  # bytes; Arrow's list of what the file holds
_AT_ONCE: Final = 64  # shards whose ends are asked for together
_AGES: Final = ("LastModified", "created", "mtime", "last_modified", "updated")  # as each library calls the time


class RemoteFolder(ShardFolder):
    """Shards at an address; a row is read as a range of bytes, many at once."""

    def __init__(self, address: str, near: Path) -> None:
        """The folder at `address`, which need not exist yet; nothing is asked for.

        Args:
            address: scheme://bucket/prefix, without credentials.
            near: a folder of this machine for a copy of the index.

        Raises:
            RecipeError: the storage's package is not installed.
        """
        self.title = address
        self._files, self._root = file_system(address)
        self._near = near
        self._unfit: set[ShardFacts] = set()  # that are no shards; said once

    @property
    @override
    def name(self) -> str:
        return self.title.rstrip("/").rsplit("/", 1)[-1]

    @override
    def listing(self) -> dict[str, ShardFacts]:
        found: list[tuple[float, ShardFacts]] = []
        with asking(self.title, "read"):
            for facts in self._entries(self._root):
                name = str(facts["name"]).rsplit("/", 1)[-1]
                if facts["type"] == "file" and name.startswith("shard-") and name.endswith(".arrow"):
                    found.append((_age(facts), ShardFacts(name, int(facts["size"] or 0))))
        return {shard.name: shard for _, shard in sorted(found) if shard not in self._unfit}

    @override
    def open(self, shards: Sequence[ShardFacts]) -> list[Opened]:
        opened: list[Opened] = []
        waiting = iter(shards)
        while some := list(islice(waiting, _AT_ONCE)):
            ends = [Span(shard.name, 0, min(_HEAD, shard.size)) for shard in some]
            ends += [Span(shard.name, max(0, shard.size - _TAIL), min(_TAIL, shard.size)) for shard in some]
            read = self.read(ends)
            for shard, head, tail in zip(some, read[: len(some)], read[len(some) :], strict=True):
                opened.append(Opened(shard.name, self._rows_of(shard, head, tail), shard.size))
        return opened

    @override
    def read(self, spans: Sequence[Span]) -> list[bytes | None]:
        if not spans:
            return []
        paths = [self._path(span.name) for span in spans]
        starts, ends = [span.offset for span in spans], [span.offset + span.length for span in spans]
        with asking(self.title, "read"):
            answers = self._files.cat_ranges(paths, starts, ends, on_error="return")
            return [self._content(answer) for answer in answers]

    @override
    def compare(self, name: str, known: Rows) -> Opened:
        whole = self._whole(name)
        if whole is None:
            return Opened(name, NO_ROWS, 0)
        try:
            rows = rows_in(whole)
        except ShardError as error:
            logger.warning("A shard of the shared cache no longer tells its rows: %s (%s)", self._path(name), error)
            rows = known
        sound = _sound(whole, rows)
        damaged = int((~sound).sum())
        if damaged:
            words = "Damaged rows in the shared cache are made again: %d of %d in %s"
            logger.warning(words, damaged, len(rows), self._path(name))
        if not sound.any():
            self._unfit.add(ShardFacts(name, len(whole)))
        return Opened(name, rows.where(sound), len(whole))

    @override
    def examine(self, name: str) -> tuple[Rows, Truths]:
        whole = self._whole(name)
        if whole is None:
            return NO_ROWS, NO_TRUTHS
        rows = rows_in(whole)
        return rows, _sound(whole, rows)

    @override
    def rows(self, name: str) -> Rows:
        with suppress(ShardError):
            whole = self._whole(name)
            return NO_ROWS if whole is None else rows_in(whole)
        return NO_ROWS

    @override
    def write(self, entries: Mapping[bytes, "bytes | memoryview"]) -> Opened:
        name, content = shard_name(), shard_bytes(entries)
        self._put(name, bytes(content))
        return Opened(name, rows_in(content), len(content))

    @override
    def remove(self, name: str) -> None:
        try:
            with asking(self.title, "written"), suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))
        except TrainerError as error:
            logger.warning("It could not be removed: %s (%s)", self._path(name), error.what)

    @override
    def load_index(self) -> Index | None:
        copy = self._near / f"shared-{INDEX_NAME}"
        with asking(self.title, "read"):
            try:
                content = self._files.cat_file(self._path(INDEX_NAME))
            except FileNotFoundError:
                return None
        try:
            write_atomically(copy, content)  # as a file it can be mapped: what is not asked for takes no memory
            return load_index(copy)
        except (IndexFileError, struct.error, OSError) as error:
            logger.warning("The index of the shared cache cannot be used: %s (%s)", self.title, error)
            return None

    @override
    def save_index(self, shards: Sequence[ShardFacts], index: RowIndex) -> None:
        draft = self._near / f".index-{secrets.token_hex(6)}.tmp"
        try:
            save_index(draft, shards, index)
            self._put(INDEX_NAME, draft.read_bytes())
        except (OSError, TrainerError) as error:  # a shortcut is not worth stopping for
            logger.warning("The index of the shared cache cannot be written; opening it takes longer: %s", error)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    @override
    def tidy(self) -> None:
        """Nothing: an object appears whole or not at all."""

    @override
    def identity(self) -> str | None:
        with asking(self.title, "read"), suppress(FileNotFoundError):
            content: bytes = self._files.cat_file(self._path(IDENTITY_NAME))
            return content.decode("utf-8", errors="replace").removesuffix("\n")
        return None

    @override
    def identify(self, identity: str) -> None:
        if self.identity() is None:
            self._put(IDENTITY_NAME, f"{identity}\n".encode())

    @override
    def discard(self) -> None:
        self.remove(INDEX_NAME)
        self.remove(IDENTITY_NAME)

    def folders(self) -> list[str]:
        """The addresses of the folders in this one, by name."""
        with asking(self.title, "read"):
            names = [str(facts["name"]) for facts in self._entries(self._root) if facts["type"] == "directory"]
        return [f"{self.title.rstrip('/')}/{name.rstrip('/').rsplit('/', 1)[-1]}" for name in sorted(names)]

    def _entries(self, path: str) -> Iterable[Mapping[str, Any]]:  # Any: each library tells more than we read
        self._files.invalidate_cache(path)  # others write there too
        try:
            return self._files.ls(path, detail=True)
        except FileNotFoundError:  # nothing was written there yet
            return []

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put(self, name: str, content: bytes) -> None:
        with asking(self.title, "written"):
            self._files.pipe_file(self._path(name), content)

    def _whole(self, name: str) -> bytes | None:
        with asking(self.title, "read"):
            try:
                content: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def _content(self, answer: object) -> bytes | None:
        """One answer of many: bytes, or the error that it raises here."""
        if isinstance(answer, BaseException):
            if isinstance(answer, FileNotFoundError):
                return None
            if is_past_the_end(answer):
                return b""
            raise answer
        return bytes(answer) if isinstance(answer, (bytes, bytearray, memoryview)) else b""

    def _rows_of(self, shard: ShardFacts, head: bytes | None, tail: bytes | None) -> Rows:
        """The rows of a shard of which only both ends were read, or else all of it."""
        if head is None or tail is None:
            return NO_ROWS
        with suppress(ShardError):
            return rows_in(_with_hole(shard.size, head, tail))
        try:
            return rows_in(self._whole(shard.name) or b"")
        except ShardError as error:
            words = "What is no whole shard in the shared cache is passed over, and its entries made again: %s (%s)"
            logger.warning(words, self._path(shard.name), error)
            self._unfit.add(shard)
            return NO_ROWS


def _with_hole(size: int, head: bytes, tail: bytes) -> mmap.mmap:
    """A shard without its contents; the pages between are never touched, so they take no memory."""
    if len(head) != min(_HEAD, size) or len(tail) != min(_TAIL, size) or not size:
        raise ShardError("it is shorter than its listing says")
    whole = mmap.mmap(-1, size)
    whole[: len(head)] = head
    whole[size - len(tail) :] = tail
    return whole


def _sound(whole: bytes, rows: Rows) -> Truths:
    """For each row whether its content is still that of its checksum [N]."""
    view = memoryview(whole)
    places = zip(rows.keys, rows.offsets.tolist(), rows.lengths.tolist(), rows.checksums.tolist(), strict=True)
    sound = [
        start + length <= len(whole) and checksum_of(key.tobytes(), view[start : start + length]) == checksum
        for key, start, length, checksum in places
    ]
    return np.array(sound, dtype=np.bool_)


def _age(facts: Mapping[str, Any]) -> float:  # Any: see RemoteFolder._entries
    """When an object was written, in seconds, as far as the library says it."""
    when = next((facts[key] for key in _AGES if facts.get(key) is not None), 0.0)
    return when.timestamp() if isinstance(when, datetime) else float(when) if isinstance(when, (int, float)) else 0.0
