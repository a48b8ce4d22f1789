"""Captions, from a captioner onto the disk: a batch at a time, nothing without record, nothing twice."""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import torch
from PIL import Image

from trainer.core.errors import DataError, MemoryPlanError, TrainerError
from trainer.core.files import write_atomically
from trainer.core.threads import in_order
from trainer.data.captioners.base import Captioner, Describer
from trainer.data.captioners.missing import Wish
from trainer.data.captioners.undoing import Entry, UndoFile, digest_of_words
from trainer.data.decoding import ImageLimits, open_image, read_regular
from trainer.data.example import Progress
from trainer.data.sidecars import MOST_CAPTION_BYTES, clean_line, decode_caption

_TITLE: Final = "writing captions"
_NOWHERE_TO_WRITE: Final = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT})
_LOST: Final = "\ufffd"  # half a character, where the limit of tokens cut it
_ENDS: Final = ".!?…。！？"


@dataclass(slots=True)
class Outcome:
    """What has become of the pictures."""

    written: int = 0
    unchanged: int = 0  # their file says all of it already, or came to be while the captioner worked
    silent: list[str] = field(default_factory=list[str])  # pictures for which the captioner had no words
    failed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (picture, reason)


@dataclass(slots=True, kw_only=True)
class Writing:
    """The work of one command; `outcome` tells at any time how far it has come."""

    captioner: Captioner
    wishes: Sequence[Wish]
    record: UndoFile
    append: bool = False
    limits: ImageLimits = field(default_factory=ImageLimits)
    outcome: Outcome = field(default_factory=Outcome)

    def run(self, device: torch.device, progress: Progress | None = None) -> Outcome:
        """Ask the captioner for every picture, and write its words.

        A picture that cannot be read or described is noted and does not stop the others.

        Raises:
            WeightsError: the captioner cannot be opened.
            MemoryPlanError: a batch does not fit into the memory of the device.
            TrainerError: the disk takes no more.
        """
        describe = self.captioner.open(device)
        done = 0
        for batch in _batches(self._pictures(), self.captioner.at_once):
            if progress is not None:
                progress(_TITLE, done, len(self.wishes))
            good = [(wish, picture) for wish, picture in batch if not isinstance(picture, DataError)]
            self.outcome.failed += [(wish.name, one.what) for wish, one in batch if isinstance(one, DataError)]
            self._write(self._described(describe, good))
            done += len(batch)
        if progress is not None and self.wishes:
            progress(_TITLE, done, len(self.wishes))
        return self.outcome

    def _pictures(self) -> "Iterator[tuple[Wish, Image.Image | DataError | None]]":
        """Every picture, decoded a batch ahead of its use; None where the captioner does not look."""
        if not self.captioner.looks:
            return ((wish, None) for wish in self.wishes)
        ahead = in_order(self._open, self.wishes, ahead=self.captioner.at_once)
        return zip(self.wishes, ahead, strict=True)

    def _open(self, wish: Wish) -> Image.Image | DataError:
        try:
            return open_image(wish.picture, self.limits)
        except DataError as error:
            return error

    def _described(
        self, describe: Describer, batch: "Sequence[tuple[Wish, Image.Image | None]]"
    ) -> list[tuple[Wish, str]]:
        """The words for each picture; those that the captioner refuses are noted and left out."""
        pictures = [picture for _, picture in batch if picture is not None]
        wishes = [wish for wish, _ in batch]
        if not wishes:
            return []
        try:
            texts = describe(pictures, [wish.path for wish in wishes])
        except DataError as error:
            if len(wishes) == 1:
                self.outcome.failed.append((wishes[0].name, error.what))
                return []
            return [pair for one in batch for pair in self._described(describe, [one])]
        except torch.OutOfMemoryError as error:
            raise MemoryPlanError(
                f"A batch of {len(wishes)} pictures does not fit into the memory of the GPU.",
                mend=f"Use a smaller one: captioner.batch={max(1, len(wishes) // 2)}. What is written stays written.",
            ) from error
        return [(wish, one_line(text)) for wish, text in zip(wishes, texts, strict=True)]

    def _write(self, described: Iterable[tuple[Wish, str]]) -> None:
        """Put the words of one batch on record, then into their files."""
        ready: list[tuple[Wish, bytes]] = []
        entries: list[Entry] = []
        for wish, text in described:
            try:
                change = self._change(wish, text)
            except DataError as error:
                self.outcome.failed.append((wish.name, f"Its caption file cannot be used: {error.what}"))
                continue
            if change is not None:
                before, after = change
                ready.append((wish, after))
                digest = digest_of_words(after)
                entries.append(Entry(folder=wish.folder, file=wish.target, before=before, after=digest))
        try:
            self.record.note(entries)
        except OSError as error:
            raise _cannot_write("The undo file", error) from error
        for wish, content in ready:
            self._put(wish, content)

    def _put(self, wish: Wish, content: bytes) -> None:
        try:
            write_atomically(wish.file, content)
        except OSError as error:
            if error.errno in _NOWHERE_TO_WRITE:
                raise _cannot_write("A caption", error) from error
            self.outcome.failed.append((wish.name, f"Its caption cannot be written: {error.strerror}."))
        else:
            self.outcome.written += 1

    def _change(self, wish: Wish, text: str) -> tuple[bytes | None, bytes] | None:
        """What the caption file holds and what it shall hold; None where it stays as it is."""
        if not text:
            self.outcome.silent.append(wish.name)
            return None
        before = read_regular(wish.file, MOST_CAPTION_BYTES) if os.path.lexists(wish.file) else None
        if before is not None and not wish.exists:  # it came to be while the captioner worked
            self.outcome.unchanged += 1
            return None
        lines: Sequence[str] = (text,)
        if self.append:
            old = wish.before if before is None else decode_caption(before, wish.name).lines
            lines = [added(line, text, tags=self.captioner.gives_tags) for line in old] or lines
            if before is not None and tuple(lines) == tuple(old):
                self.outcome.unchanged += 1
                return None
        after = ("\n".join(lines) + "\n").encode("utf-8")
        if after == before:
            self.outcome.unchanged += 1
            return None
        return before, after


def one_line(text: str) -> str:
    """`text` as a caption: one line, single spaces, no control characters, no halves of characters."""
    return " ".join(clean_line(" ".join(text.replace(_LOST, "").split()))[0].split())


def added(caption: str, text: str, *, tags: bool) -> str:
    """`caption` with what `text` says more; of tags, those that it lacks."""
    if tags:
        known = {_bare(tag) for tag in caption.split(",")}
        new = [tag.strip() for tag in text.split(",") if _bare(tag) not in known]
        return ", ".join([caption.rstrip(" ,"), *new]) if caption.strip(" ,") else ", ".join(new)
    if text in caption:
        return caption
    return f"{caption} {text}" if caption.endswith(tuple(_ENDS)) else f"{caption.rstrip(' ,')}, {text}"


def _bare(tag: str) -> str:
    """A tag without its ways of writing."""
    return tag.strip().casefold().replace("\\", "").replace("_", " ")


def _batches(
    items: "Iterator[tuple[Wish, Image.Image | DataError | None]]", size: int
) -> "Iterator[list[tuple[Wish, Image.Image | DataError | None]]]":
    while batch := list(islice(items, size)):
        yield batch


def _cannot_write(what: str, error: OSError) -> TrainerError:
    return TrainerError(
        f"{what} cannot be written: {error.strerror}.",
        mend="Make room, or get the right to write there; what is written stays, and a second run does the rest.",
    )
