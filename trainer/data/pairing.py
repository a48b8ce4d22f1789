"""Which files of a folder are pictures, which are their captions, and which are neither."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from trainer.data.decoding import looks_like_picture
from trainer.data.walking import FoundFile, Walk

_PICTURES: Final = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
)
_OTHER_PICTURES: Final = frozenset(
    (".heic", ".heif", ".jxl", ".jp2", ".tga", ".ico", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw")
)
_PAPERS: Final = frozenset({"readme", "license", "licence", "licenses", "notice", "copying"})


@dataclass(slots=True)
class Pairs:
    """The files of a folder, each in one of four lists; `refused` and `passed` hold (name, reason)."""

    pictures: list[FoundFile] = field(default_factory=list[FoundFile])
    captions: list[FoundFile] = field(default_factory=list[FoundFile])
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    passed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    warnings: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    caption_of: dict[str, FoundFile] = field(default_factory=dict[str, FoundFile])  # by the picture's `relative`


def pair(found: Walk, suffixes: Sequence[str]) -> Pairs:
    """Pair pictures with caption files of the same stem; of several suffixes the first in `suffixes` wins."""
    pairs = Pairs(refused=list(found.refused), passed=list(found.passed))
    possible: list[FoundFile] = []
    for file in found.files:
        if file.suffix in suffixes:
            possible.append(file)
        else:
            _sort_in(file, pairs)
    chosen = _first_of_each_stem(possible, suffixes, pairs)
    used: dict[str, FoundFile] = {}
    for picture in pairs.pictures:
        caption = chosen.get((picture.folder, picture.stem))
        if caption is None:
            continue
        if caption.relative in used:
            other = used[caption.relative].name
            pairs.warnings.append((picture.name, f"has the same stem, and so the same caption, as {other}"))
        pairs.caption_of[picture.relative] = caption
        used.setdefault(caption.relative, picture)
    for caption in chosen.values():
        if caption.relative in used:
            pairs.captions.append(caption)
        else:
            _pass_lonely_caption(caption, pairs)
    return pairs


def _sort_in(file: FoundFile, pairs: Pairs) -> None:
    if file.suffix in _PICTURES:
        pairs.pictures.append(file)
    elif file.suffix in _OTHER_PICTURES:
        pairs.refused.append((file.name, f"Pictures of type {file.suffix} are not read; save it as PNG or JPEG."))
    elif _is_picture_by_content(file):
        pairs.pictures.append(file)
        pairs.warnings.append((file.name, "is a picture by its content, not by its name"))
    else:
        pairs.passed.append((file.name, "not a picture"))


def _is_picture_by_content(file: FoundFile) -> bool:
    try:
        with file.path.open("rb") as opened:
            return looks_like_picture(opened.read(16))
    except OSError:
        return False  # whatever it is, nothing says that it is a picture


def _first_of_each_stem(
    possible: Sequence[FoundFile], suffixes: Sequence[str], pairs: Pairs
) -> dict[tuple[str, str], FoundFile]:
    chosen: dict[tuple[str, str], FoundFile] = {}
    for file in sorted(possible, key=lambda file: suffixes.index(file.suffix)):
        stem = (file.folder, file.stem)
        if stem in chosen:
            pairs.passed.append((file.name, f"{chosen[stem].name} is the caption"))
            pairs.warnings.append((file.name, f"a second caption file; {chosen[stem].name} is used"))
        else:
            chosen[stem] = file
    return chosen


def _pass_lonely_caption(caption: FoundFile, pairs: Pairs) -> None:
    if caption.stem.lower() in _PAPERS:
        pairs.passed.append((caption.name, "not a picture"))
        return
    pairs.passed.append((caption.name, "a caption without a picture"))
    pairs.warnings.append((caption.name, "a caption without a picture"))
