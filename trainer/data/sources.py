"""Folders -> examples, with an account of every file."""

import os
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt

from trainer.core.errors import DataError
from trainer.core.settings import Settings
from trainer.data.account import Account, Draft, join
from trainer.data.decoding import ImageLimits, read_picture
from trainer.data.example import Example, Progress, Size
from trainer.data.pairing import Pairs, pair
from trainer.data.sidecars import Words, clean, read_caption
from trainer.data.walking import FoundFile, Walk, walk

_NUMBERED: Final = re.compile(r"([1-9]\d{0,2})_(.*)", re.DOTALL)  # a year, of four digits, is no number of repeats


class Source(Settings, ABC):
    """Where pictures and their words come from."""

    @abstractmethod
    def scan(self, index: int, limits: ImageLimits, progress: Progress | None = None) -> Account:
        """Look at every file; decode each picture once, from its first byte to its last.

        Args:
            index: which of the recipe's sources this is; written into examples and remarks.
            limits: what a picture may measure.
            progress: told after each picture.

        Raises:
            DataError: the source does not exist, or holds nothing that is meant to be a picture.
        """


class ImageFolder(Source):
    """A folder of pictures, each with a caption file of the same name beside it.

    A subfolder, or the folder itself, in sd-scripts' form `10_name class` multiplies `repeats` by its number, and
    its words are the caption of those pictures that have no caption file.
    """

    kind: Literal["folder"] = "folder"
    path: Path
    """The folder; a relative path starts where the command is run."""
    repeats: PositiveInt = 1
    """How often each picture is seen in one epoch."""
    weight: PositiveFloat = 1.0
    """How much the loss of these pictures counts."""
    regularisation: bool = False
    """Ordinary pictures that keep what the base knows: their captions stay as they are, without the trigger."""
    recursive: bool = True
    """Whether folders inside the folder are read too."""
    caption_suffixes: tuple[Annotated[str, Field(pattern=r"^\.[a-z0-9_]+$")], ...] = (".txt", ".caption")
    """What caption files end with, in small letters; the first that exists is used."""
    numbered_folders: bool = True
    """Whether `10_name class` means ten repeats."""

    def scan(self, index: int, limits: ImageLimits, progress: Progress | None = None) -> Account:
        """As the contract says."""
        found = walk(self.path, recursive=self.recursive)
        pairs = pair(found, self.caption_suffixes)
        if not pairs.pictures and not pairs.refused:
            raise _no_pictures(self.path, found)
        seen: list[_Seen | DataError] = []
        with _quiet_pillow(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            words = dict(zip((file.relative for file in pairs.captions), pool.map(_read, pairs.captions), strict=True))
            for one in pool.map(partial(_look, limits=limits), pairs.pictures):
                seen.append(one)
                if progress is not None:
                    progress("reading pictures", len(seen), len(pairs.pictures))
        draft = _begin(index, str(self.path), pairs, words)
        for file, one in zip(pairs.pictures, seen, strict=True):
            caption = pairs.caption_of.get(file.relative)
            self._settle(draft, file, one, None if caption is None else words[caption.relative])
        return draft.finish()

    def _settle(
        self, draft: Draft, file: FoundFile, seen: "_Seen | DataError", words: Words | DataError | None
    ) -> None:
        """Accept the picture, or refuse it with the reason."""
        if isinstance(seen, DataError):
            draft.reject(file.name, seen.what, seen.mend)
            return
        if isinstance(words, DataError):
            draft.reject(file.name, "Its caption file cannot be used.", words.mend)
            return
        number, class_words = self._numbered(file)
        if words is None and not class_words:
            draft.warn(file.name, "has no caption")
        elif words is not None and not words.text:
            draft.warn(file.name, "its caption is empty")
        for remark in (*seen.remarks, *(words.remarks if words else ())):
            draft.warn(file.name, remark)
        draft.accepted.append(
            Example(
                path=file.path,
                name=file.name,
                key=seen.key,
                size=seen.size,
                caption=class_words if words is None else words.text,
                source=draft.index,
                repeats=self.repeats * number,
                weight=self.weight,
                regularisation=self.regularisation,
            )
        )

    def _numbered(self, file: FoundFile) -> tuple[int, str]:
        """Repeats and words of the nearest folder in sd-scripts' form, or (1, "")."""
        if self.numbered_folders:
            folders = [self.path.resolve().name, *file.folder.split("/")]
            for folder in reversed(folders):
                if match := _NUMBERED.fullmatch(folder):
                    return int(match[1]), clean(match[2]).text
        return 1, ""


AnySource = Annotated[ImageFolder, Field(discriminator="kind")]


def scan(sources: Sequence[Source], limits: ImageLimits, progress: Progress | None = None) -> Account:
    """The account of all sources, in their order; whether it will do is asked with `Account.check`.

    Raises:
        DataError: a source does not exist, or holds nothing that is meant to be a picture.
    """
    return join(source.scan(index, limits, progress) for index, source in enumerate(sources))


class _Seen(NamedTuple):
    """What a decoded picture leaves behind; its pixels are not kept, since the set may be larger than memory."""

    key: str
    size: Size
    remarks: tuple[str, ...]


def _look(file: FoundFile, limits: ImageLimits) -> _Seen | DataError:
    try:
        picture = read_picture(file.path, limits)
    except DataError as error:
        return error
    return _Seen(picture.key, Size(*picture.image.size), picture.remarks)


def _read(file: FoundFile) -> Words | DataError:
    try:
        return read_caption(file.path)
    except DataError as error:
        return error


def _begin(index: int, source: str, pairs: Pairs, words: dict[str, Words | DataError]) -> Draft:
    """The account of all files that are no pictures."""
    draft = Draft(index, source)
    for name, reason in pairs.refused:
        draft.reject(name, reason)
    for name, reason in pairs.passed:
        draft.ignore(name, reason)
    for name, reason in pairs.warnings:
        draft.warn(name, reason)
    for file in pairs.captions:
        text = words[file.relative]
        if isinstance(text, DataError):
            draft.reject(file.name, text.what, text.mend)
        else:
            draft.caption(file.name)
    return draft


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


@contextmanager
def _quiet_pillow() -> Generator[None, None, None]:
    """Pillow's warnings go to the terminal with source lines; what matters of them is in our own remarks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        warnings.simplefilter("ignore", category=Image.DecompressionBombWarning)
        yield
