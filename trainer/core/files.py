"""Files that are whole or absent: atomic writes, digests, and paths that stay in their folder."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Lock
from typing import Final

from trainer.core.errors import NotWrittenError, TrainerError
from trainer.core.log import logger

_MEBIBYTE = 1 << 20
_UNFINISHED: Final = re.compile(r"\..*\.[0-9a-f]{12}\.tmp")
_ON_WINDOWS: Final = os.name == "nt"
_SHARING_PAUSES: Final = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds; virus scanners and indexers let go of a file by then
_REFUSALS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}
)
_MASK_IS_MINE = Lock()  # two threads that read it at once would leave the wrong one behind


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside `path`; on leaving without an error it is flushed and takes the name `path`.

    The order is: write, fsync of the file, rename, fsync of the folder. So after a crash or a power cut the name holds
    either the old file or the whole new one. After an error the temporary file is gone and the old file untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        yield temporary
        flush_to_disk(temporary)
        # mkstemp-like writers leave 0600; other programs of the user must be able to read the result.
        temporary.chmod(0o666 & ~_umask())
        take_name(temporary, path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """A name beside `path` for what is not whole yet; nobody else has it, and `remove_unfinished` knows it."""
    return path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.tmp"  # a character has up to four bytes


def remove_unfinished(folder: Path) -> None:
    """Take away what killed processes had begun to write into `folder`; nobody else may be writing there."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _UNFINISHED.fullmatch(path.name):
            continue
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            logger.warning("What a stopped run left could not be removed: %s: %s.", path, error.strerror)


def take_name(temporary: Path, path: Path) -> None:
    """Let `temporary` be called `path`, instead of what was called so; a folder takes only a name that is free.

    On Windows, where a name cannot be taken while another program has the file open, it is tried for some seconds.
    """
    for pause in _SHARING_PAUSES if _ON_WINDOWS else ():
        try:
            temporary.replace(path)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    temporary.replace(path)


@contextmanager
def told_of_refusals(folder: Path) -> Generator[None, None, None]:
    """Turns an OSError by which the disk takes no more into a message for the user.

    Raises:
        NotWrittenError: the disk is full, read-only or failing, or its rights are wrong.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise not_written("Something of this run", Path(error.filename or folder), error) from error


def not_written(what: str, path: Path, error: OSError, *, needed: int = 0) -> NotWrittenError:
    """Why `what` could not be written, and how much room is missing where that is known.

    Args:
        what: begins the sentence.
        path: of what was to be written.
        error: what the system said.
        needed: bytes; 0 where nobody knows.
    """
    room = free_bytes(path)
    lacks = error.errno in (errno.ENOSPC, errno.EDQUOT) and needed > room
    missing = f" It takes {megabytes(needed)}, and {megabytes(room)} are free: {megabytes(needed - room)} are missing."
    return NotWrittenError(
        f"{what} could not be written: {error.strerror or error}.{missing if lacks else ''}",
        where=str(path),
        mend="Make room on the disk, or check the folder's rights; what was written before is untouched.",
    )


def free_bytes(path: Path) -> int:
    """How many bytes there are for us on the disk of `path`, which need not exist yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def megabytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / _MEBIBYTE:,.1f} MiB"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` so that `path` holds all of it, or what it held before."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def flush_to_disk(path: Path) -> None:
    """Force a file, or a folder's list of names, onto the disk.

    Windows cannot open folders; there the rename itself is journaled.
    """
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_MEBIBYTE):
            digest.update(piece)
    return digest.hexdigest()


def inside(root: Path, relative: str) -> Path:
    """The path `root/relative`, after making sure that it really lies in `root`.

    Raises:
        TrainerError: `relative` is absolute, climbs out with "..", names a drive, or a link leads out of `root`.
    """
    windows = PureWindowsPath(relative)
    climbs = ".." in PurePosixPath(relative).parts or ".." in windows.parts
    if (
        not relative
        or "\0" in relative
        or climbs
        or windows.drive
        or windows.root
        or PurePosixPath(relative).is_absolute()
    ):
        raise TrainerError(
            f"The path {relative!r} leaves its folder.",
            where=str(root),
            mend="Use a relative path without '..'.",
        )
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise TrainerError(
            f"The path {relative!r} leads out of its folder through a link.",
            where=str(root),
            mend="Copy the file into the folder.",
        )
    return path


def printable(text: str) -> str:
    """`text` without control and direction-changing characters, so that a file's name cannot paint the terminal."""
    if text.isprintable():  # nearly always, and quick
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _umask() -> int:
    """The process's file-mode mask; it can only be read by setting it."""
    with _MASK_IS_MINE:
        mask = os.umask(0o022)
        os.umask(mask)
    return mask
