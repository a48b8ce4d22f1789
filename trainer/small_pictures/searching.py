"""Which pictures of a folder are too small, and where the larger ones go."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Final

from trainer.core.errors import DataError, TrainerError
from trainer.core.files import inside
from trainer.core.threads import in_order
from trainer.data.decoding import ImageLimits, look, read_regular
from trainer.data.example import Progress, Size
from trainer.data.pairing import Pairs, pair
from trainer.data.sources.folder import ImageFolder
from trainer.data.sources.metadata import Tables, read_tables
from trainer.data.walking import FoundFile, walk

LEAST_SIDE: Final = 32  # pixels: below it, a network for pictures makes up everything
_MASK: Final = "-masklabel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A picture, what belongs to it, and where they go."""

    picture: FoundFile
    size: Size  # upright
    target: Size  # what it shall measure; its own size where it is only copied
    to: str  # inside the other folder, with "/"
    beside: tuple[tuple[FoundFile, str], ...]  # caption files and mask, each with where it goes
    words: tuple[str, ...]  # captions that a table of the folder has for it, where it has no caption file
    words_to: str  # where these go


@dataclass(slots=True)
class Search:
    """What the folder holds."""

    small: list[Wish] = field(default_factory=list[Wish])
    large: list[Wish] = field(default_factory=list[Wish])  # they are large enough
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (name, reason)
    passed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    warnings: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def enough(size: Size, least: int) -> Size:
    """The smallest size of this shape, rounded up, that has an area of `least` times `least` pixels."""
    return Size(_ceiled_root(size.width, size.height, least), _ceiled_root(size.height, size.width, least))


def search(
    folder: Path,
    out: Path,
    least: int,
    *,
    limits: ImageLimits,
    before: Mapping[str, str],
    progress: Progress | None = None,
) -> Search:
    """Look at every picture of a folder, in an order that no file system can change.

    Args:
        folder: is only read.
        out: where the larger pictures go; no path leaves it.
        least: pictures of fewer than its square of pixels are small.
        limits: what a picture may measure.
        before: where pictures went when the same work was begun, by their paths inside `folder`.
        progress: told after each picture.

    Raises:
        DataError: there is no such folder, or it holds no pictures.
    """
    source = ImageFolder(path=folder)
    seen = walk(folder, recursive=True)
    tables = read_tables(seen, None)
    seen.files = [file for file in seen.files if file.relative not in tables.files]
    pairs = pair(seen, source.caption_suffixes, masks=True, every_caption=True)
    found = Search(refused=[*pairs.refused, *tables.rejected], passed=pairs.passed, warnings=pairs.warnings)
    if not pairs.pictures and not found.refused:
        raise DataError(
            "This folder holds no pictures.",
            where=source.title,
            mend="Give the folder with the .png, .jpg, .webp, ... files themselves, or one above it.",
        )
    sizes = list(_looked_at(pairs.pictures, limits, found, progress))
    names = _Names(out, pairs, tables, before, {file.relative for file, size in sizes if not _small(size, least)})
    for file, size in sizes:
        try:
            wish = names.wish(file, size, enough(size, least) if _small(size, least) else size)
        except TrainerError as error:
            found.refused.append((file.name, error.what))
        else:
            (found.small if _small(size, least) else found.large).append(wish)
    return found


def _small(size: Size, least: int) -> bool:
    return size.width * size.height < least * least


def _ceiled_root(side: int, other: int, least: int) -> int:
    """The square root of least² * side / other, rounded up."""
    return isqrt((least * least * side - 1) // other) + 1


def _looked_at(
    pictures: Sequence[FoundFile], limits: ImageLimits, found: Search, progress: Progress | None
) -> Iterator[tuple[FoundFile, Size]]:
    """The pictures that can be used, with their sizes; the others are refused by name."""

    def size_of(file: FoundFile) -> Size | DataError:
        try:
            return look(read_regular(file.path, limits.bytes), file.name, limits).size
        except DataError as error:
            return error

    for number, (file, size) in enumerate(zip(pictures, in_order(size_of, pictures), strict=True), start=1):
        if progress is not None:
            progress("reading pictures", number, len(pictures))
        if isinstance(size, DataError):
            found.refused.append((file.name, size.what))
        elif min(size) < LEAST_SIDE:
            what = f"It has {size.width} x {size.height} pixels; below {LEAST_SIDE} a network makes up everything."
            found.refused.append((file.name, what))
        else:
            yield file, size


class _Names:
    """Gives every picture a place of its own: the name that it has, as .png, or one beside it where that is taken."""

    def __init__(self, out: Path, pairs: Pairs, tables: Tables, before: Mapping[str, str], copied: set[str]) -> None:
        self._out, self._pairs, self._tables, self._before, self._copied = out, pairs, tables, before, copied
        others = (file.relative for file in pairs.masks)
        self._taken = {name.casefold() for name in (*copied, *others, *before.values())}
        self._stems = {_stem(file).casefold() for file in pairs.pictures}  # their captions bear these names

    def wish(self, file: FoundFile, size: Size, target: Size) -> Wish:
        """The picture with its place.

        Raises:
            TrainerError: a place would lie outside of the folder.
        """
        to = self._place_of(file)
        stem = to.rpartition(".")[0] if file.suffix or to != file.relative else to
        mask = self._pairs.mask_of.get(file.relative)
        own = self._pairs.all_captions_of.get(file.relative, [])
        beside = [(caption, stem + _suffix(caption)) for caption in own]
        if mask is not None:
            beside.append((mask, mask.relative if stem == _stem(file) else stem + _MASK + _suffix(mask)))
        for place in (to, *(place for _, place in beside)):
            inside(self._out, "./" + place)
        words = () if own else self._tables.captions_of(file.relative) or ()
        return Wish(
            picture=file,
            size=size,
            target=target,
            to=to,
            beside=tuple(beside),
            words=words,
            words_to=stem + ".txt",
        )

    def _place_of(self, file: FoundFile) -> str:
        if file.relative in self._copied:
            return file.relative
        if (known := self._before.get(file.relative)) is not None:
            return known
        stem, number = _stem(file), 1
        while f"{stem}.png".casefold() in self._taken or (number > 1 and stem.casefold() in self._stems):
            stem = f"{_stem(file)}_{file.suffix.lstrip('.')}" + (f"_{number}" if number > 1 else "")
            number += 1
        place = f"{stem}.png"
        self._taken.add(place.casefold())
        return place


def _stem(file: FoundFile) -> str:
    """The path without its suffix."""
    return f"{file.folder}/{file.stem}" if file.folder else file.stem


def _suffix(file: FoundFile) -> str:
    """The suffix as it is written."""
    return file.relative[len(_stem(file)) :]
