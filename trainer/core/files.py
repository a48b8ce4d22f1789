"""Files that are whole or absent: atomic writes, digests, and paths that stay in their folder."""

import hashlib
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Lock

from trainer.core.errors import TrainerError

_MEBIBYTE = 1 << 20
_MASK_IS_MINE = Lock()  # two threads that read it at once would leave the wrong one behind


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside `path`; on leaving without an error it is flushed and takes the name `path`.

    The order is: write, fsync of the file, rename, fsync of the folder. So after a crash or a power cut the name holds
    either the old file or the whole new one. After an error the temporary file is gone and the old file untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.tmp"  # a character has up to four bytes
    try:
        yield temporary
        flush_to_disk(temporary)
        # mkstemp-like writers leave 0600; other programs of the user must be able to read the result.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
