"""What was encoded and lies in no shard yet, on the disk all the same: a kill takes nothing that was finished.

A writer appends to a file of its own, and holds a lock beside it, which the system releases however the process ends.
When its rows are in a shard, both are removed. What a killed process has left is read by whoever fills the folder next,
as far as its checksums say that it is whole. Nothing is flushed: the system keeps what it was given when a process is
killed, and not when the power fails; then the entries are made again.
"""

import os
import secrets
import struct
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainer.core.errors import TrainerError
from trainer.core.log import logger
from trainer.data.shard_rows import KEY_BYTES, checksum_of, raw_key

if TYPE_CHECKING:
    from filelock import BaseFileLock

_FIRST: Final = ".journal-"
_ROWS: Final = ".rows"
_LOCK: Final = ".lock"
_TURNS: Final = ".journals.lock"
_HEAD: Final = b"trainer-journal-1\n"
_RECORD: Final = struct.Struct(f"<{KEY_BYTES}sII")  # key, bytes of the content, CRC-32 of key and content
_AT_ONCE: Final = 64 * 1024 * 1024  # bytes of contents that are taken up together
_PATIENCE: Final = 60.0  # seconds in which another process has surely taken up what there is

Content = bytes
Contents = Mapping[str, Content]
"""By key, which has 64 hexadecimal characters."""


class Journal:
    """The rows of one shard to be; made when the first come, and one writer's alone."""

    def __init__(self, folder: Path) -> None:
        """Nothing is there yet."""
        self._path = folder / f"{_FIRST}{secrets.token_hex(12)}{_ROWS}"
        self._lock: BaseFileLock | None = None
        self._file: FileIO | None = None
        self._lost = False

    def append(self, contents: Contents) -> None:
        """The rows outlive this process when this returns; where that cannot be, it is said once and work goes on."""
        if self._lost or not contents:
            return
        try:
            file = self._file or self._begin()
            _write(file, b"".join(piece for key, content in contents.items() for piece in _record(key, content)))
        except (OSError, NotImplementedError) as error:  # the latter is filelock's word for a disk without locks
            logger.warning("What is encoded outlives a kill only when it lies in a shard: %s", error)
            self.end()
            self._lost = True

    def next(self) -> "Journal":
        """The one for the rows after these; this one, if the folder takes none."""
        return self if self._lost else Journal(self._path.parent)

    def end(self) -> None:
        """Remove it: its rows are in a shard, or their room is needed."""
        self._close(remove=True)

    def leave(self) -> None:
        """Let it lie for whoever fills the folder next: its rows did not come into a shard."""
        self._close(remove=False)

    def _begin(self) -> FileIO:
        self._lock = _lock_of(self._path)
        self._lock.acquire(timeout=0)
        # Made here and by nobody else: a file or a link that has this name already is refused.
        self._file = FileIO(self._path, "x")
        _write(self._file, _HEAD)
        return self._file

    def _close(self, *, remove: bool) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            if remove:
                _unlink(self._path)
        if self._lock is not None:
            _release(self._lock, self._path)
            self._lock = None


def take_up(folder: Path, into: Callable[[Contents], None]) -> None:
    """What killed processes have left in a folder has been given on and is removed; exactly once, whoever else asks.

    A process that asks while another takes something up waits for it. Journals whose writer lives are let be, and so
    is what cannot be read or written now: nothing here stops the work, since entries can be made again.

    Args:
        folder: where journals may lie.
        into: writes rows so that they are durable when it returns; a TrainerError leaves them where they are.
    """
    from filelock import FileLock

    if not _journals(folder):
        return
    turns = folder / _TURNS
    try:
        with FileLock(turns, timeout=_PATIENCE):
            for path in _journals(folder):
                _take_up_one(path, into)
    except (OSError, NotImplementedError):  # the folder is not ours to write; or the other, filelock's Timeout, hangs
        return
    _unlink(turns)


def discard_abandoned(folder: Path) -> None:
    """Remove what killed processes have left in a folder, unread."""
    for path in _journals(folder):
        with _claimed(path) as mine:
            if mine:
                _unlink(path)


def remove_lonely_lock(path: Path) -> None:
    """Remove the lock of a journal that was never begun, or is gone.

    Raises:
        OSError: it is gone, or held by another process on Windows.
    """
    if not path.with_suffix(_ROWS).exists():
        path.unlink()


def rows_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Key and content of the records of a journal, up to the first that is not whole.

    Raises:
        OSError: it is gone, or cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_HEAD)) != _HEAD:
            if size >= len(_HEAD):  # else its writer was killed right at its beginning
                logger.warning("This is no journal of the cache and is not used: %s", path.name)
            return
        while len(header := file.read(_RECORD.size)) == _RECORD.size:
            key, length, checksum = _RECORD.unpack(header)
            if file.tell() + length > size:  # its writer was killed in the middle of it
                return
            content = file.read(length)
            if checksum_of(key, content) != checksum:
                logger.warning("A journal of the cache is damaged; what stands before is used: %s", path.name)
                return
            yield key.hex(), content


def _take_up_one(path: Path, into: Callable[[Contents], None]) -> None:
    with _claimed(path) as mine:
        if not mine:
            return
        try:
            count = 0
            for rows in _together(path):
                into(rows)
                count += len(rows)
            path.unlink()
        except FileNotFoundError:  # another process was quicker
            return
        except (OSError, TrainerError) as error:
            logger.warning("What a killed process had encoded cannot be taken up now: %s (%s)", path.name, error)
            return
        logger.info("Entries that a killed process had encoded are taken up: %d.", count)


def _together(path: Path) -> Iterator[Contents]:
    """The rows of a journal in pieces, so that a file of any size fits into memory."""
    rows: dict[str, bytes] = {}
    held = 0
    for key, content in rows_of(path):
        rows[key] = content
        held += len(content)
        if held >= _AT_ONCE:
            yield rows
            rows, held = {}, 0
    if rows:
        yield rows


def _record(key: str, content: bytes) -> tuple[bytes, bytes]:
    raw = raw_key(key)
    return _RECORD.pack(raw, len(content), checksum_of(raw, content)), content


def _write(file: FileIO, content: bytes) -> None:
    """Give all of it to the system, which takes less at once where its disk is nearly full."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) or 0 :]


def _journals(folder: Path) -> list[Path]:
    found: list[Path] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_FIRST) and entry.name.endswith(_ROWS) and entry.is_file(follow_symlinks=False):
                found.append(folder / entry.name)
    return sorted(found)


@contextmanager
def _claimed(path: Path) -> Generator[bool, None, None]:
    """Whether the journal at this path has no other owner; then it has none as long as this lasts."""
    lock = _lock_of(path)
    try:
        lock.acquire(timeout=0)
    except OSError:  # also filelock's Timeout: its writer lives; or it is another user's
        yield False
        return
    try:
        yield True
    finally:
        _release(lock, path)


def _lock_of(path: Path) -> "BaseFileLock":
    """The lock of the journal at this path; any thread may release it."""
    from filelock import FileLock

    return FileLock(path.with_suffix(_LOCK), thread_local=False)


def _release(lock: "BaseFileLock", path: Path) -> None:
    """Give a journal's lock back; its file goes when the journal has gone, for then there is nothing left to guard."""
    lock.release()
    if not path.exists():
        _unlink(path.with_suffix(_LOCK))


def _unlink(path: Path) -> None:
    with suppress(OSError):  # it may be open in another process, on Windows; the next that fills removes it
        path.unlink(missing_ok=True)
