"""Every entry of a folder, in an order that no file system can change; links never lead out of it."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer.core.errors import DataError
from trainer.core.files import printable

# In small letters. A NAS keeps thumbnails of every picture in @eaDir, and deleted pictures in its recycle bin.
_SYSTEM_NAMES: Final = frozenset(("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")) | {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information")
}


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file inside the folder. There may be millions, so the path is put together when it is asked for."""

    relative: str  # inside the folder, with "/", bytes that are no UTF-8 kept as surrogates
    root: Path
    target: str = ""  # where a link leads, absolute

    @property
    def path(self) -> Path:
        """The file itself, no link."""
        return Path(self.target) if self.target else self.root / self.relative

    @property
    def name(self) -> str:
        """The relative path, safe to print."""
        return printable(self.relative)

    @property
    def folder(self) -> str:
        """The part of `relative` before the file's own name."""
        return self.relative.rpartition("/")[0]

    @property
    def stem(self) -> str:
        """The file's own name without its suffix."""
        return self._parts[0]

    @property
    def suffix(self) -> str:
        """The suffix in small letters, with its dot."""
        return self._parts[1].lower()

    @property
    def _parts(self) -> tuple[str, str]:
        name = self.relative.rpartition("/")[2]
        stem, dot, rest = name.rpartition(".")
        return (stem, dot + rest) if stem.strip(".") and rest else (name, "")


@dataclass(slots=True)
class Walk:
    """What a folder holds: files to look at, and entries that are not looked at, with the reason."""

    files: list[FoundFile] = field(default_factory=list[FoundFile])
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (name, reason)
    passed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def walk(root: Path, *, recursive: bool) -> Walk:
    """Look through `root`.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    if not root.is_dir():
        raise DataError(
            "There is no such folder." if not root.exists() else "This is a file, not a folder.",
            where=str(root),
            mend="Give the folder that holds the pictures; a relative path starts where the command is run.",
        )
    found = Walk()
    real_root = root.resolve()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as listing:
                entries = list(listing)
        except OSError as error:
            if not folder:
                raise DataError(f"This folder cannot be read: {error.strerror}.", where=str(root)) from error
            found.refused.append((printable(folder), f"This folder cannot be read: {error.strerror}."))
            continue
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if _look_at(entry, relative, (root, real_root), found):
                if recursive:
                    waiting.append(relative)
                else:
                    found.passed.append((printable(relative), "a folder; `recursive` is off"))
    found.files.sort(key=lambda file: os.fsencode(file.relative))
    found.refused.sort()
    found.passed.sort()
    return found


def _look_at(entry: os.DirEntry[str], relative: str, roots: tuple[Path, Path], found: Walk) -> bool:
    """Put the entry into its list, or say by True that it is a folder to enter."""
    if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
        found.passed.append((printable(relative), "hidden, or a file of the operating system"))
        return False
    if entry.is_symlink():
        _look_at_link(entry, relative, roots, found)
        return False
    if entry.is_dir(follow_symlinks=False):
        return True
    if entry.is_file(follow_symlinks=False):
        found.files.append(FoundFile(relative, roots[0]))
    else:
        found.refused.append((printable(relative), "This is no regular file but a pipe, socket or device."))
    return False


def _look_at_link(entry: os.DirEntry[str], relative: str, roots: tuple[Path, Path], found: Walk) -> None:
    root, real_root = roots  # as it was given, and without links
    try:
        target = Path(entry.path).resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError):  # RuntimeError: a circle of links, before Python 3.13
        found.refused.append((printable(relative), "This link leads nowhere."))
        return
    if not target.is_relative_to(real_root):
        found.refused.append((printable(relative), "This link leads out of the folder; copy what it points to."))
    elif stat.S_ISREG(mode):
        found.files.append(FoundFile(relative, root, str(target)))
    elif stat.S_ISDIR(mode):
        found.passed.append((printable(relative), "a link to a folder that is read anyway"))
    else:
        found.refused.append((printable(relative), "This link leads to no regular file."))
