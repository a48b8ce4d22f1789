"""Folders of pictures, with caption files, tables of captions, masks and numbered folders."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, NonNegativeInt
from typing_extensions import override

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.core.settings import Settings
from trainer.core.threads import in_order
from trainer.data.account import Draft
from trainer.data.decoding import read_regular
from trainer.data.pairing import Pairs, pair
from trainer.data.sidecars import Words, clean_line, read_caption
from trainer.data.sources.base import Found, Reader, Source, stamp_of
from trainer.data.sources.metadata import Tables, read_tables
from trainer.data.walking import FoundFile, Walk, walk

_NUMBERED: Final = re.compile(r"([1-9]\d{0,2})_(.*)", re.DOTALL)  # a year, of four digits, is no number of repeats


class Generated(Settings):
    """Pictures that the base model draws where the folder does not hold enough of them."""

    count: NonNegativeInt = 200
    """How many pictures the folder shall hold; what is missing is drawn before the run begins."""
    prompts: tuple[str, ...] = Field(min_length=1)
    """What to draw, taking turns; each picture's prompt becomes its caption."""
    steps: int = Field(default=25, ge=1, le=1000)
    """Denoising steps a picture."""
    guidance: float = Field(default=7.0, ge=0)
    """How strictly the prompt is followed."""
    seed: NonNegativeInt = 0
    """Their chance; picture number n is the same whenever it is drawn."""


class ImageFolder(Source):
    """A folder of pictures, each with a caption file of the same name beside it, or a table of captions.

    A subfolder, or the folder itself, in sd-scripts' form `10_name class` multiplies `repeats` by its number, and
    its words are the caption of those pictures that have none. `metadata.jsonl`, `.csv` or `.parquet` in the form of
    Hugging Face's ImageFolder hold the captions of the pictures that have no caption file.
    """

    kind: Literal["folder"] = "folder"
    path: Path
    """The folder; a relative path starts where the command is run."""
    recursive: bool = True
    """Whether folders inside the folder are read too."""
    caption_suffixes: tuple[Annotated[str, Field(pattern=r"^\.[a-z0-9_]+$")], ...] = (".txt", ".caption")
    """What caption files end with, in small letters."""
    caption_files: Literal["first", "all"] = "first"
    """Where a picture has several caption files: the first suffix is used, or all are, as alternatives."""
    caption_column: str | None = None
    """The column of captions in metadata files; nothing said: text, caption, captions or prompt."""
    numbered_folders: bool = True
    """Whether `10_name class` means ten repeats."""
    generate: Generated | None = None
    """Draw class pictures with the base model where the folder holds too few; it may then be missing or empty."""

    @property
    @override
    def title(self) -> str:
        return printable(str(self.path))

    @override
    def open(self) -> "FolderReader":
        return FolderReader(self)


@dataclass(eq=False)
class FolderReader(Reader):
    """A folder that is being read; locators are paths inside it."""

    folder: ImageFolder

    @override
    def list(self, draft: Draft) -> Iterator[Found]:
        wanted = self.folder.generate
        if wanted is not None and not (self.folder.path.is_dir() and any(self.folder.path.iterdir())):
            draft.warn(".", f"holds no pictures yet; the base model draws {wanted.count} before the run begins")
            return
        found = walk(self.folder.path, recursive=self.folder.recursive)
        tables = read_tables(found, self.folder.caption_column)
        found.files = [file for file in found.files if file.relative not in tables.files]
        pairs = pair(
            found,
            self.folder.caption_suffixes,
            masks=self.folder.masks == "files",
            every_caption=self.folder.caption_files == "all",
        )
        if not pairs.pictures and not pairs.refused and not tables.rejected:
            raise _no_pictures(self.folder.path, found)
        words = self._read_captions(pairs)
        _write_draft(draft, pairs, words, tables)
        for file in pairs.pictures:
            yield self._found(file, pairs, words, tables)

    @override
    def read(self, locator: str, most: int) -> bytes:
        return read_regular(self._path(locator), most)

    @override
    def where(self, locator: str) -> str:
        return printable(str(self.folder.path / locator))

    def path(self, locator: str) -> Path:
        """The file itself."""
        return self._path(locator)

    def _path(self, locator: str) -> Path:
        path = self.folder.path / locator
        # Links are followed once, and not out of the folder; the file that is opened is then no link itself.
        real = path.resolve()
        if not real.is_relative_to(self._root):
            raise DataError(
                "This link leads out of the folder.", where=self.where(locator), mend="Copy the file into it."
            )
        return real

    @cached_property
    def _root(self) -> Path:
        return self.folder.path.resolve()

    def _read_captions(self, pairs: Pairs) -> dict[str, Words | DataError]:
        """The words in every caption file, by its path inside the folder."""
        return dict(zip((file.relative for file in pairs.captions), in_order(_read, pairs.captions), strict=True))

    def _found(self, file: FoundFile, pairs: Pairs, words: dict[str, Words | DataError], tables: Tables) -> Found:
        own = [words[caption.relative] for caption in self._captions_of(file, pairs)]
        refused = next((one for one in own if isinstance(one, DataError)), None)
        read = [one for one in own if isinstance(one, Words)]
        lines = tuple(dict.fromkeys(line for one in read for line in one.lines))
        remarks = tuple(remark for one in read for remark in one.remarks)
        if read and not lines:
            remarks += ("its caption is empty",)
        listed = tables.captions_of(file.relative)
        if not own:
            lines = listed or ()
        elif listed is not None:
            remarks += ("is also named in a metadata file; its caption file is used",)
        number, class_words = self._numbered(file)
        mask = pairs.mask_of.get(file.relative)
        return Found(
            locator=file.relative,
            name=file.name,
            stamp=_stamp(file),
            captions=lines,
            class_words=class_words,
            remarks=remarks,
            refusal=None
            if refused is None
            else DataError("Its caption file cannot be used.", where=file.name, mend=refused.mend),
            repeats=number,
            mask="" if mask is None else mask.relative,
            mask_stamp="" if mask is None else _stamp(mask),
        )

    def _captions_of(self, file: FoundFile, pairs: Pairs) -> "tuple[FoundFile, ...]":
        return tuple(pairs.all_captions_of.get(file.relative, ()))

    def _numbered(self, file: FoundFile) -> tuple[int, str]:
        """Repeats and words of the nearest folder in sd-scripts' form, or (1, "")."""
        if self.folder.numbered_folders:
            for name in reversed([self._root.name, *file.folder.split("/")]):
                if match := _NUMBERED.fullmatch(name):
                    return int(match[1]), clean_line(match[2])[0]
        return 1, ""


def _read(file: FoundFile) -> Words | DataError:
    try:
        return read_caption(file.path)
    except DataError as error:
        return error


def _stamp(file: FoundFile) -> str:
    try:
        return stamp_of(file.path.lstat())
    except OSError:  # gone since the walk: reading it will say so
        return ""


def _write_draft(draft: Draft, pairs: Pairs, words: dict[str, Words | DataError], tables: Tables) -> None:
    """The account of all files that are no pictures."""
    for name, reason in (*pairs.refused, *tables.rejected):
        draft.reject(name, reason)
    for name, reason in (*pairs.passed, *tables.ignored):
        draft.ignore(name, reason)
    for name, reason in (*pairs.warnings, *tables.warnings):
        draft.warn(name, reason)
    for name in tables.used:
        draft.caption(name)
    for mask in {mask.relative: mask for mask in pairs.mask_of.values()}.values():
        draft.mask(mask.name)
    for file in pairs.captions:
        text = words[file.relative]
        if isinstance(text, DataError):
            draft.reject(file.name, text.what, text.mend)
        else:
            draft.caption(file.name)


def _no_pictures(folder: Path, found: Walk) -> DataError:
    kinds = Counter(file.suffix or "without suffix" for file in found.files)
    seen = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8)) or "no files"
    if found.passed:
        seen += f", and {len(found.passed)} entries that are not looked into, such as {found.passed[0][0]}"
    return DataError(
        f"This folder holds no pictures. Seen there: {seen}.",
        where=str(folder),
        mend="Give the folder with the .png, .jpg, .webp, ... files themselves, or one above it.",
    )
