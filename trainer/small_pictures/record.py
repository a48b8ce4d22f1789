"""What a folder of enlarged pictures was begun with, and which pictures it got: so that the work can go on."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trainer.core.errors import RecipeError
from trainer.core.files import printable, write_atomically
from trainer.data.decoding import read_regular

NAME: Final = "enlarged.jsonl"
_MOST_BYTES: Final = 1 << 30
_HERE: Final = "./"  # in front of every path, so that a name such as "a: b.png" is not taken for a drive


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What makes two pieces of work the same; files and folders are known by digests, so that no path is told."""

    folder: str  # of the small pictures
    network: str
    faces: str  # "": none are restored
    least: int


_MEANING: Final[Mapping[str, str]] = {
    "folder": "for another folder of pictures",
    "network": "with another network (--with)",
    "faces": "with other weights for faces (--faces), or without any",
    "least": "for another size (--least)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One picture that was written, or is being written."""

    picture: str  # inside the folder of small pictures, with "/"
    key: str  # BLAKE3 of its bytes
    to: str  # inside the folder of enlarged ones


class Record:
    """The record of one folder; in a file that begins to be when there is something to record."""

    def __init__(self, folder: Path, order: Order) -> None:
        """Read, where the folder holds one.

        Args:
            folder: of enlarged pictures; may not exist yet.
            order: what is asked for now.

        Raises:
            RecipeError: the folder holds other things, or was begun with another order.
        """
        self.entries: dict[str, Entry] = {}
        self._path, self._order = folder / NAME, order
        if not os.path.lexists(self._path):
            _check_empty(folder)
            return
        first, *lines = read_regular(self._path, _MOST_BYTES).split(b"\n")
        _check_same(first, order, folder)
        for line in lines:
            if (entry := _entry_of(line)) is not None:
                self.entries[entry.picture] = entry

    def begin(self) -> None:
        """Write what is known, without a line that was cut short when the work was killed.

        Raises:
            OSError: the disk takes no more.
        """
        write_atomically(self._path, "".join(map(_line, (self._order, *self.entries.values()))))

    def note(self, entry: Entry) -> None:
        """Put an entry on the disk: the picture is to be written after this, so that none is there without record.

        Raises:
            OSError: the disk takes no more.
        """
        if self.entries.get(entry.picture) == entry:
            return
        with self._path.open("ab") as file:
            file.write(_line(entry).encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        self.entries[entry.picture] = entry


def _line(content: Order | Entry) -> str:
    """One line of JSON; letters of names that are no UTF-8 are lone surrogates, and so come back."""
    said = asdict(content)
    if isinstance(content, Entry):
        said |= {"picture": _HERE + content.picture, "to": _HERE + content.to}
    return json.dumps(said, ensure_ascii=True) + "\n"


def _entry_of(line: bytes) -> Entry | None:
    """The entry in a line, or None."""
    try:
        said: Any = json.loads(line)  # Any: JSON
        picture, key, to = said["picture"], said["key"], said["to"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not all(isinstance(text, str) for text in (picture, key, to)):
        return None
    return Entry(picture=picture.removeprefix(_HERE), key=key, to=to.removeprefix(_HERE))


def _check_empty(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RecipeError("This is a file, not a folder.", where=f"--out {printable(str(folder))}", mend=_EMPTY)
    there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if there:
        raise RecipeError(
            f"This folder is not empty and holds no enlarged pictures of ours; it holds {printable(there[0])}.",
            where=f"--out {printable(str(folder))}",
            mend=_EMPTY,
        )


def _check_same(line: bytes, order: Order, folder: Path) -> None:
    """Make sure that the first line of a record says the same as `order`."""
    try:
        said: Any = json.loads(line)  # Any: JSON
    except (ValueError, RecursionError):
        said = None
    asked = asdict(order)
    if not isinstance(said, dict) or said.keys() != asked.keys():
        what = f"Its {NAME} is no record of enlarged pictures."
    else:
        other = [meaning for name, meaning in _MEANING.items() if said[name] != asked[name]]
        if not other:
            return
        what = f"This folder was begun {', and '.join(other)}."
    raise RecipeError(what, where=f"--out {printable(str(folder))}", mend=f"{_EMPTY} Or ask for the same as before.")


_EMPTY: Final = "Give a new or an empty folder."
