"""What a captioner has written, on record; and back."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

from trainer.core.errors import DataError, TrainerError
from trainer.core.files import flush_to_disk, inside, printable, write_atomically
from trainer.data.decoding import read_regular
from trainer.data.example import Progress

_MOST_LINE_BYTES: Final = 1 << 24
_MOST_CAPTION_BYTES: Final = 1 << 20
_HERE: Final = "./"  # in front of every path, so that a name such as "a: b.txt" is not taken for a drive


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One caption file that was written."""

    folder: str  # the folder's name in this record
    file: str  # inside the folder, with "/"
    before: bytes | None  # what it held; None: it was not there
    after: str  # SHA-256 of what was written, hexadecimal

    def as_line(self) -> str:
        """The entry as one line of JSON; bytes that are no UTF-8 become lone surrogates, and so come back."""
        before = None if self.before is None else self.before.decode("utf-8", "surrogateescape")
        content = {"folder": self.folder, "file": _HERE + self.file, "before": before, "sha256": self.after}
        return json.dumps(content, ensure_ascii=True) + "\n"

    @classmethod
    def of_line(cls, line: bytes) -> "Entry | None":
        """The entry that a line holds, or None."""
        try:
            said: Any = json.loads(line)  # Any: JSON
            texts = (said["folder"], said["file"], said["sha256"])
            before = said["before"]
            held = None if before is None else before.encode("utf-8", "surrogateescape")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if not all(isinstance(text, str) for text in texts):
            return None
        return cls(folder=texts[0], file=texts[1], before=held, after=texts[2])


class UndoFile:
    """The record of one command, in a file that begins to be when there is something to record."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path: Path | None = None

    def note(self, entries: Sequence[Entry]) -> None:
        """Put `entries` on the disk: they are to be written after this, so that nothing is written without record.

        Raises:
            OSError: the disk takes no more.
        """
        if not entries:
            return
        if self.path is None:
            self.path = self._begun()
        with self.path.open("ab") as file:
            file.write("".join(entry.as_line() for entry in entries).encode("ascii"))
            file.flush()
            os.fsync(file.fileno())

    def _begun(self) -> Path:
        """A new empty file, named by the time."""
        stem = f"captions-undo-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        for number in count(1):
            path = self._folder / (f"{stem}.jsonl" if number == 1 else f"{stem}-{number}.jsonl")
            try:
                path.open("xb").close()
            except FileExistsError:
                continue
            flush_to_disk(self._folder)
            return path
        raise AssertionError("counting never ends")


@dataclass(slots=True)
class Undone:
    """What became of the files on record."""

    restored: int = 0
    already: int = 0  # files that hold what they held before
    left: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (file, why it was left alone)


def undo(record: Path, folders: Mapping[str, Path], progress: Progress | None = None) -> Undone:
    """Give every file on record back what it held before, where it still holds what was written then.

    Args:
        record: an undo file.
        folders: the folders that may be touched, by the names that the record has for them.
        progress: told after each file.

    Raises:
        TrainerError: it is no undo file, or names a file outside of these folders; nothing was touched.
    """
    total = 0
    for entry in _entries(record):  # all of it is looked at before anything is touched
        if entry.folder not in folders:
            raise TrainerError(
                f"The undo file is about another folder: {printable(entry.folder)}.",
                where=printable(str(record)),
                mend="Name the recipe, or the folder, that was captioned then.",
            )
        inside(folders[entry.folder], entry.file)
        total += 1
    done = Undone()
    for number, entry in enumerate(_entries(record), start=1):
        file = inside(folders[entry.folder], entry.file)
        name = printable(str(file))
        try:
            reason = _restore(file, entry, done)
        except OSError as error:
            reason = f"It cannot be written: {error.strerror}."
        if reason:
            done.left.append((name, reason))
        if progress is not None:
            progress("taking captions back", number, total)
    return done


def digest_of_words(content: bytes) -> str:
    """What the record knows written content by."""
    return hashlib.sha256(content).hexdigest()


def _restore(file: Path, entry: Entry, done: Undone) -> str:
    """Restore one file, or say why it is left alone."""
    try:
        held = read_regular(file, _MOST_CAPTION_BYTES) if os.path.lexists(file) else None
    except DataError as error:
        return error.what
    if held == entry.before:
        done.already += 1
        return ""
    if held is None:
        return "It is gone."
    if digest_of_words(held) != entry.after:
        return "It was changed since it was written."
    if entry.before is None:
        file.unlink()
        flush_to_disk(file.parent)
    else:
        write_atomically(file, entry.before)
    done.restored += 1
    return ""


def _entries(record: Path) -> Iterator[Entry]:
    """The entries of an undo file; a last line that a crash has torn is none, for its files were never written."""
    try:
        with record.open("rb") as file:
            number = 0
            while line := file.readline(_MOST_LINE_BYTES):
                number += 1
                entry = Entry.of_line(line)
                if entry is None and not line.endswith(b"\n") and number > 1:
                    return
                if entry is None:
                    raise TrainerError(
                        "This is no undo file.",
                        where=f"{printable(str(record))}:{number}",
                        mend="Name a file captions-undo-….jsonl that `trainer caption` has written.",
                    )
                yield entry
    except OSError as error:
        raise TrainerError(
            f"This undo file cannot be read: {error.strerror}.",
            where=printable(str(record)),
            mend="Name a file captions-undo-….jsonl that `trainer caption` has written.",
        ) from error
