"""A subset of an sd-scripts configuration: a folder, with class tokens and perhaps a list of its captions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final, cast

from pydantic import Field
from typing_extensions import override

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.account import Draft
from trainer.data.decoding import read_regular
from trainer.data.sidecars import Words, clean_line
from trainer.data.sources.archives import leaves
from trainer.data.sources.base import Found
from trainer.data.sources.columns import lines_of
from trainer.data.sources.folder import FolderReader, ImageFolder
from trainer.data.sources.metadata import CaptionStore
from trainer.data.sources.tables import open_table

_MOST_BYTES: Final = 1 << 30  # of a list of captions
_MOST_REMARKS: Final = 1000
_SPACE: Final = " \t\r\n"


class Subset(ImageFolder):
    """What one [[datasets.subsets]] stands for; made by the `sd_scripts` source alone."""

    caption_suffixes: tuple[str, ...] = Field(default=(".txt", ".caption"))
    class_words: str = ""
    """The words of pictures that have no caption."""
    listing: Path | None = None
    """Its metadata_file: the pictures that are used, with their captions."""
    remarks: tuple[str, ...] = ()
    """What to know of keys that are treated otherwise here."""

    @override
    def notes(self) -> tuple[str, ...]:
        return self.remarks

    @override
    def open(self) -> FolderReader:
        return SubsetReader(self, self)


@dataclass(eq=False)
class SubsetReader(FolderReader):
    """The folder of a subset that is being read."""

    subset: Subset

    @override
    def list(self, draft: Draft) -> Iterator[Found]:
        class_words = clean_line(self.subset.class_words)[0]
        listing = None if self.subset.listing is None else Listing.read(self.subset.listing, self.folder.path)
        for found in super().list(draft):
            if listing is None:
                yield replace(found, class_words=class_words)
            elif (lines := listing.take(found.locator)) is None:
                draft.ignore(found.name, f"is not named in {listing.name}")
            else:
                yield replace(found, captions=lines, class_words=class_words)
        if listing is not None:
            listing.settle(draft)


@dataclass(eq=False)
class Listing:
    """sd-scripts' metadata of a fine-tuning subset: captions and tags by picture.

    A .json file is one object, `{"name": {"caption": ..., "tags": ...}}`; a .jsonl file has one object a line, with
    `image_path`. Names are relative to the folder or absolute, with or without the picture's suffix.

    Source: https://github.com/kohya-ss/sd-scripts/blob/main/docs/dataset_metadata.md
    """

    name: str  # safe to print
    path: Path
    root: Path
    rejected: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    warnings: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    unreadable: int = 0
    _captions: CaptionStore = field(default_factory=CaptionStore)
    _waiting: dict[str, None] = field(default_factory=dict[str, None])  # names that no picture has had yet

    @classmethod
    def read(cls, path: Path, root: Path) -> "Listing":
        """The list in `path`, of pictures in the folder `root`.

        Raises:
            DataError: it is gone, too large, in another encoding, or no such list.
        """
        if not path.exists():
            raise DataError("There is no such metadata_file.", where=printable(str(path)), mend="Mend its path.")
        listing = cls(printable(path.name), path, root)
        if path.suffix.lower() == ".jsonl":
            listing._read_lines()
        else:
            listing._read_object(read_regular(path.resolve(), _MOST_BYTES))
        return listing

    def take(self, relative: str) -> tuple[str, ...] | None:
        """The captions of a picture, or None where it is not listed."""
        for name in (relative, str(PurePosixPath(relative).with_suffix(""))):
            if name in self._captions:
                self._waiting.pop(name, None)
                return self._captions.get(name)
        return None

    def settle(self, draft: Draft) -> None:
        """Write the list itself, and the names that no picture had, into the account."""
        for name in self._waiting:
            self._refuse(f"{self.name}, {printable(name)[:200]}", "There is no such picture in the folder.")
        for name, reason in self.rejected:
            draft.reject(name, reason)
        if self.unreadable > _MOST_REMARKS:
            draft.reject(f"{self.name}, its rest", f"{self.unreadable - _MOST_REMARKS:,} more entries cannot be used.")
        for name, reason in self.warnings[:_MOST_REMARKS]:
            draft.warn(name, reason)
        # Where it lies in the folder itself, the folder has taken it for a file that nobody needs.
        own = [remark for remark in draft.ignored if remark.name == self._name_in_folder()]
        for remark in own:
            draft.ignored.remove(remark)
        draft.caption(self.name)

    def _name_in_folder(self) -> str:
        path, root = self.path.resolve(), self.root.resolve()
        return printable(path.relative_to(root).as_posix()) if path.is_relative_to(root) else ""

    def _read_lines(self) -> None:
        for row in open_table(self.path.resolve()).rows(()):
            name = row.cells.get("image_path")
            if row.problem:
                self._refuse(f"{self.name}, {row.place}", f"This row {row.problem}.")
            elif isinstance(name, str):
                self._put(name, row.cells, row.place)
            else:
                self._refuse(f"{self.name}, {row.place}", "This row has no image_path.")

    def _read_object(self, content: bytes) -> None:
        try:
            text = content.decode("utf-8-sig")
            for name, entry in _entries(text):
                self._put(name, entry, printable(name)[:200])
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"This metadata_file cannot be read: {printable(str(error))[:200]}.",
                where=printable(str(self.path)),
                mend='Write one JSON object: {"name": {"caption": "...", "tags": "..."}}.',
            ) from error

    def _put(self, name: str, entry: object, place: str) -> None:
        relative = self._relative(name)
        if relative is None:
            self._refuse(f"{self.name}, {place}", "It names a picture outside image_dir.")
            return
        try:
            words = _words(entry, place)
        except DataError as error:
            self._refuse(f"{self.name}, {place}", error.what)
            return
        if relative in self._captions:
            self.warnings.append((self.name, f"names {place} more than once; the last one counts"))
        self.warnings.extend((self.name, f"{place}: {remark}") for remark in words.remarks)
        self._captions.put(relative, words.lines)
        self._waiting[relative] = None

    def _relative(self, name: str) -> str | None:
        """The name inside the folder, or None where it leads out of it; nothing is opened by it."""
        path = Path(name)
        for root in (self.root, self.root.absolute(), self.root.resolve()):
            if path.is_absolute() and path.is_relative_to(root):
                name = path.relative_to(root).as_posix()
        return None if leaves(name) else str(PurePosixPath(name.replace("\\", "/")))

    def _refuse(self, name: str, reason: str) -> None:
        self.unreadable += 1
        if self.unreadable <= _MOST_REMARKS:
            self.rejected.append((name, reason))


def _words(entry: object, where: str) -> Words:
    """Each line of the caption with the tags behind it; the tags alone where there is no caption.

    Raises:
        DataError: the entry is no object of texts.
    """
    if not isinstance(entry, dict):
        raise DataError("Its entry is no object.", where=where)
    fields = cast("dict[str, object]", entry)  # JSON's keys are text
    captions = lines_of(fields.get("caption"), where)
    tags = lines_of(fields.get("tags"), where)
    behind = ", ".join(tags.lines)
    lines = tuple(f"{line}, {behind}" if behind else line for line in captions.lines) or ((behind,) if behind else ())
    return Words(lines, (*captions.remarks, *tags.remarks))


def _entries(text: str) -> Iterator[tuple[str, object]]:
    """The members of a JSON object one after the other, so that a list of millions is never objects all at once."""
    decoder = json.JSONDecoder()
    place = _after(text, 0, "{")
    if _next_sign(text, place) == "}":
        return
    while True:
        if _next_sign(text, place) != '"':
            raise ValueError(f"a name in quotes was expected at letter {place}")
        name, place = decoder.raw_decode(text, _skip(text, place))
        entry, place = decoder.raw_decode(text, _skip(text, _after(text, place, ":")))
        yield name, entry
        if _next_sign(text, place) == "}":
            return
        place = _after(text, place, ",")


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def _next_sign(text: str, place: int) -> str:
    place = _skip(text, place)
    return text[place : place + 1]


def _after(text: str, place: int, sign: str) -> int:
    place = _skip(text, place)
    if text[place : place + 1] != sign:
        raise ValueError(f"{sign} was expected at letter {place}")
    return place + 1
