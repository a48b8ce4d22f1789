"""Which files of a folder are pictures, which are their captions and masks, and which are none of these."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from trainer.data.decoding import looks_like_picture
from trainer.data.walking import FoundFile, Walk

_PICTURES: Final = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
)
_OTHER_PICTURES: Final = frozenset(
    (".heic", ".heif", ".jxl", ".jp2", ".tga", ".ico", ".exr", ".hdr", ".ppm", ".dng", ".cr2", ".cr3", ".nef", ".arw")
)
_PAPERS: Final = frozenset({"readme", "license", "licence", "licenses", "notice", "copying"})
_MASK_ENDS: Final = ("-masklabel", "_mask", ".mask")  # the first is OneTrainer's
_MASK_FOLDERS: Final = frozenset(("mask", "masks"))

_Stem = tuple[str, str]  # folder, and name without suffix


@dataclass(slots=True)
class Pairs:
    """The files of a folder, each in one of five lists; `refused` and `passed` hold (name, reason)."""

    pictures: list[FoundFile] = field(default_factory=list[FoundFile])
    captions: list[FoundFile] = field(default_factory=list[FoundFile])  # in use
    masks: list[FoundFile] = field(default_factory=list[FoundFile])  # in use
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    passed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    warnings: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    # By the picture's `relative`:
    caption_of: dict[str, FoundFile] = field(default_factory=dict[str, FoundFile])  # the first in order of suffixes
    all_captions_of: dict[str, list[FoundFile]] = field(default_factory=dict[str, list[FoundFile]])
    mask_of: dict[str, FoundFile] = field(default_factory=dict[str, FoundFile])


def pair(found: Walk, suffixes: Sequence[str], *, masks: bool = False, every_caption: bool = False) -> Pairs:
    """Pair pictures with caption files of the same stem, and with mask files.

    Args:
        found: the folder; what is no regular file in it was refused there already.
        suffixes: what caption files end with, in small letters; the first that a picture has comes first.
        masks: whether NAME-masklabel.png, NAME_mask.png, NAME.mask.png and masks/NAME.png (or any other suffix of
            pictures) are masks of NAME; otherwise they are pictures, with a warning.
        every_caption: whether a picture's second caption file is used too, as an alternative.
    """
    pairs = Pairs(refused=list(found.refused), passed=list(found.passed))
    captions: list[FoundFile] = []
    for file in found.files:
        if file.suffix in suffixes:
            captions.append(file)
        else:
            _sort_in(file, pairs)
    _take_masks(pairs, use=masks)
    _give_captions(_by_stem(captions, suffixes), pairs, every=every_caption)
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


def _take_masks(pairs: Pairs, *, use: bool) -> None:
    """Move masks out of the pictures; or only warn of pictures that look like masks of others."""
    candidates = {file.relative: stems for file in pairs.pictures if (stems := list(_stems_masked_by(file)))}
    if not candidates:
        return
    pictures = _by_stem(file for file in pairs.pictures if not use or file.relative not in candidates)
    kept: list[FoundFile] = []
    for file in pairs.pictures:
        stems = candidates.get(file.relative, [])
        masked = [picture for stem in stems for picture in pictures.get(stem, []) if picture is not file]
        if use and stems:
            _give_mask(file, masked, pairs)
            continue
        kept.append(file)
        if masked:
            pairs.warnings.append(
                (file.name, f"looks like the mask of {masked[0].name}; it is used as a picture unless masks=files")
            )
    pairs.pictures = kept


def _stems_masked_by(file: FoundFile) -> Iterator[_Stem]:
    """Of which pictures a file could be the mask, by its name."""
    for end in _MASK_ENDS:
        if file.stem.endswith(end) and len(file.stem) > len(end):
            yield file.folder, file.stem[: -len(end)]
    folders = file.folder.split("/")
    for place, folder in enumerate(folders):
        if folder.lower() in _MASK_FOLDERS:
            yield "/".join(folders[:place] + folders[place + 1 :]), file.stem


def _give_mask(mask: FoundFile, pictures: Sequence[FoundFile], pairs: Pairs) -> None:
    without = [picture for picture in pictures if picture.relative not in pairs.mask_of]
    if without:
        pairs.masks.append(mask)
        pairs.mask_of.update((picture.relative, mask) for picture in without)
        return
    reason = f"a second mask of {pictures[0].name}; not used" if pictures else "a mask without a picture"
    pairs.passed.append((mask.name, reason))
    pairs.warnings.append((mask.name, reason))


def _by_stem(files: Iterable[FoundFile], suffixes: Sequence[str] = ()) -> dict[_Stem, list[FoundFile]]:
    found: dict[_Stem, list[FoundFile]] = {}
    for file in files:
        found.setdefault((file.folder, file.stem), []).append(file)
    if suffixes:
        for several in found.values():
            several.sort(key=lambda file: suffixes.index(file.suffix))
    return found


def _give_captions(captions: dict[_Stem, list[FoundFile]], pairs: Pairs, *, every: bool) -> None:
    owners: dict[_Stem, FoundFile] = {}
    for picture in pairs.pictures:
        stem = (picture.folder, picture.stem)
        if stem not in captions:
            continue
        if stem in owners:
            warning = f"has the same stem, and so the same caption, as {owners[stem].name}"
            pairs.warnings.append((picture.name, warning))
        owners.setdefault(stem, picture)
        pairs.caption_of[picture.relative] = captions[stem][0]
        pairs.all_captions_of[picture.relative] = captions[stem] if every else captions[stem][:1]
    alike = {_alike(picture): picture for picture in pairs.pictures} if len(owners) < len(captions) else {}
    for stem, several in captions.items():
        if stem not in owners:
            for caption in several:
                _pass_lonely_caption(caption, alike.get(_alike(caption)), pairs)
            continue
        pairs.captions.extend(several if every else several[:1])
        for caption in [] if every else several[1:]:
            pairs.passed.append((caption.name, f"{several[0].name} is the caption"))
            pairs.warnings.append((caption.name, f"a second caption file; {several[0].name} is used"))


def _alike(file: FoundFile) -> _Stem:
    """What is the same for names that look the same to a person."""
    return file.folder, unicodedata.normalize("NFC", file.stem).casefold()


def _pass_lonely_caption(caption: FoundFile, alike: FoundFile | None, pairs: Pairs) -> None:
    if caption.stem.lower() in _PAPERS:
        pairs.passed.append((caption.name, "not a picture"))
        return
    pairs.passed.append((caption.name, "a caption without a picture"))
    hint = "" if alike is None else f"; {alike.name} differs only in its letters' case, or in how accents are written"
    pairs.warnings.append((caption.name, "a caption without a picture" + hint))
