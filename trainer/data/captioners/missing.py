"""Which pictures of a folder want words, and into which file the words of each go."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from trainer.core.errors import DataError
from trainer.data.pairing import pair
from trainer.data.sources.folder import ImageFolder
from trainer.data.sources.metadata import read_tables
from trainer.data.walking import FoundFile, walk

Mode = Literal["missing", "overwrite", "append"]
"""What becomes of pictures that have a caption: they are left alone, get another one, or get more words."""

NEW_SUFFIX: Final = ".txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A picture that wants words, and the file that they go into."""

    picture: Path
    name: str  # FOLDER/FILE, safe to print
    path: str  # the picture's path from the folder's own name on, as it is on the disk
    folder: str  # by which name the undo file calls the folder
    root: Path  # the folder itself
    target: str  # the caption file inside the folder, with "/"
    exists: bool  # whether the caption file is there already
    before: tuple[str, ...] = ()  # captions that a table of the folder has for it

    @property
    def file(self) -> Path:
        """The caption file."""
        return self.root / self.target


@dataclass(slots=True)
class Search:
    """What the folders hold."""

    wishes: list[Wish] = field(default_factory=list[Wish])
    there: int = 0  # pictures that have a caption and keep it
    shared: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (picture, whose words are its own)
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (picture, reason)


def search(folders: Mapping[str, ImageFolder], mode: Mode, suffix: str | None = None) -> Search:
    """Look for pictures that want words, in an order that no file system can change.

    Args:
        folders: by the name that the undo file shall call them.
        mode: what becomes of pictures that have a caption.
        suffix: of caption files, such as ".tags": files of other suffixes then do not count as captions.

    Raises:
        DataError: a folder does not exist, or holds no pictures.
    """
    found = Search()
    taken: dict[Path, str] = {}
    for name, folder in folders.items():
        _Looker(
            name, folder, (suffix,) if suffix else folder.caption_suffixes or (NEW_SUFFIX,), mode, found, taken
        ).look()
    return found


@dataclass(slots=True)
class _Looker:
    name: str
    folder: ImageFolder
    suffixes: Sequence[str]
    mode: Mode
    found: Search
    taken: dict[Path, str]  # caption file -> the picture that it is for

    def look(self) -> None:
        """Add what the folder holds."""
        seen = walk(self.folder.path, recursive=self.folder.recursive)
        tables = read_tables(seen, self.folder.caption_column)
        seen.files = [file for file in seen.files if file.relative not in tables.files]
        pairs = pair(seen, self.suffixes, masks=self.folder.masks == "files")
        if not pairs.pictures and not pairs.refused:
            kinds = Counter(file.suffix or "without suffix" for file in seen.files).most_common(8)
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds) or "no files"
            raise DataError(
                f"This folder holds no pictures. Seen there: {shown}.",
                where=self.folder.title,
                mend="Give the folder with the .png, .jpg, .webp, ... files themselves, or one above it.",
            )
        self.found.refused += [(f"{self.folder.title}/{name}", reason) for name, reason in pairs.refused]
        root = self.folder.path.resolve()
        for file in pairs.pictures:
            caption = pairs.caption_of.get(file.relative)
            told = tables.captions_of(file.relative)
            if self.mode == "missing" and (caption is not None or told is not None):
                self.found.there += 1
                continue
            self._wish(file, caption, told or (), root)

    def _wish(self, file: FoundFile, caption: FoundFile | None, told: tuple[str, ...], root: Path) -> None:
        """Add the picture, unless its caption file is another's, or no caption file."""
        name = f"{self.folder.title}/{file.name}"
        if caption is None:
            target = str(PurePosixPath(file.folder) / (file.stem + self.suffixes[0]))
        else:
            target = caption.path.resolve().relative_to(root).as_posix()  # a link's words are where it leads
        path = root / target
        if (other := self.taken.get(path)) is not None:
            self.found.shared.append((name, other))
            return
        if caption is None and os.path.lexists(path):
            self.found.refused.append((name, f"Where its caption belongs ({path.name}) is something else."))
            return
        self.taken[path] = name
        self.found.wishes.append(
            Wish(
                picture=file.path,
                name=name,
                path=f"{root.name}/{file.relative}",
                folder=self.name,
                root=root,
                target=target,
                exists=caption is not None,
                before=told,
            )
        )
