"""Small pictures are made larger, one after the other, each whole or not at all; their own folder is only read."""

import math
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from trainer.core.errors import DataError, MemoryPlanError, RecipeError
from trainer.core.files import printable, remove_unfinished, told_of_refusals, write_atomically
from trainer.core.memory import OUT_OF_MEMORY, ran_out
from trainer.data.decoding import ImageLimits, decode, digest, read_regular
from trainer.data.example import Progress, Size
from trainer.sampling.enlarging import Enlarger
from trainer.sampling.parameters import save_png
from trainer.sampling.restoring import FaceRestorer
from trainer.small_pictures.record import Entry, Record
from trainer.small_pictures.searching import Wish

_TITLE: Final = "enlarging pictures"
_WHITE: Final = 255.0  # what transparent parts were put on


@dataclass(slots=True)
class Outcome:
    """What has become of the pictures."""

    enlarged: int = 0
    copied: int = 0
    there: int = 0  # they were made before
    most: float = 1.0  # the largest factor along a side
    failed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (picture, reason)
    remarks: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (picture, what was decided)


@dataclass(slots=True, kw_only=True)
class Making:
    """The work of one command; `outcome` tells at any time how far it has come."""

    out: Path
    record: Record
    enlarger: Enlarger
    restorer: FaceRestorer | None
    limits: ImageLimits = field(default_factory=ImageLimits)
    outcome: Outcome = field(default_factory=Outcome)

    def run(self, small: Sequence[Wish], large: Sequence[Wish], progress: Progress) -> None:
        """Write every picture that is not there yet, with its captions.

        A picture that cannot be read or written is noted and does not stop the others.

        Args:
            small: pictures to enlarge.
            large: pictures to copy as they are.
            progress: told after each picture.

        Raises:
            MemoryPlanError: a picture does not fit into memory in the smallest pieces.
            NotWrittenError: the disk takes no more.
            RecipeError: another process is at the same work.
        """
        wishes = (*small, *large)
        if not wishes:
            return
        with told_of_refusals(self.out), _alone(self.out):
            for folder in {self.out, *((self.out / wish.to).parent for wish in wishes)}:
                remove_unfinished(folder)
            self.record.begin()
            progress(_TITLE, 0, len(wishes))
            for number, wish in enumerate(wishes, start=1):
                self._make(wish)
                progress(_TITLE, number, len(wishes))

    def _make(self, wish: Wish) -> None:
        """One picture, unless it is there; what cannot be done with it alone is noted."""
        try:
            content = read_regular(wish.picture.path, self.limits.bytes)
            entry = Entry(picture=wish.picture.relative, key=digest(content), to=wish.to)
            if self._is_there(entry):
                self.outcome.there += 1
                return
            with told_of_refusals(self.out):
                self._write_beside(wish)
                if wish.target == wish.size:
                    self._copy(entry, content)
                else:
                    self._enlarge(entry, wish, content)
        except DataError as error:
            self._fail(wish, error.what)
        except OSError as error:  # such as a name that is too long with another suffix
            self._fail(wish, f"It cannot be written: {error.strerror}.")

    def _is_there(self, entry: Entry) -> bool:
        """Whether this very picture was made before.

        Raises:
            DataError: where it belongs is something that we did not write.
        """
        if not os.path.lexists(self.out / entry.to):
            return False
        before = self.record.entries.get(entry.picture)
        if before is None or before.to != entry.to:
            raise DataError("Where it belongs is something else.")
        return before.key == entry.key

    def _copy(self, entry: Entry, content: bytes) -> None:
        self.record.note(entry)
        write_atomically(self.out / entry.to, content)
        self.outcome.copied += 1

    def _enlarge(self, entry: Entry, wish: Wish, content: bytes) -> None:
        picture = decode(content, wish.picture.name, self.limits)
        with _enough_memory(wish):
            made = enlarged(picture.image, wish.target, self.enlarger)
            if self.restorer is not None:
                made = self.restorer.restored(made)
        if picture.alpha is not None:
            made = with_transparency(made, picture.alpha.resize(made.size, Image.Resampling.LANCZOS))
        self.record.note(entry)
        save_png(self.out / entry.to, made)
        self.outcome.enlarged += 1
        self.outcome.most = max(self.outcome.most, math.sqrt(math.prod(wish.target) / math.prod(wish.size)))
        self.outcome.remarks += [(wish.picture.name, remark) for remark in picture.remarks]

    def _write_beside(self, wish: Wish) -> None:
        """Captions and mask, where they are not there yet; what a person changed there since stays."""
        for file, place in wish.beside:
            if not os.path.lexists(self.out / place):
                write_atomically(self.out / place, read_regular(file.path, self.limits.bytes))
        if wish.words and not os.path.lexists(self.out / wish.words_to):
            write_atomically(self.out / wish.words_to, "\n".join(wish.words) + "\n")

    def _fail(self, wish: Wish, reason: str) -> None:
        self.outcome.failed.append((wish.picture.name, reason))


def enlarged(picture: Image.Image, target: Size, enlarger: Enlarger) -> Image.Image:
    """A picture of exactly the target's size: sent through the network until it is no smaller, then made smaller."""
    made = picture
    while made.width < target.width or made.height < target.height:
        made = enlarger.enlarged(made)
    return made if made.size == target else made.resize(target, Image.Resampling.LANCZOS)


def with_transparency(on_white: Image.Image, alpha: Image.Image) -> Image.Image:
    """The RGBA picture that looks like `on_white` (RGB) on white, and is as transparent as `alpha` (L) says."""
    seen = np.asarray(on_white, dtype=np.float32)
    share = np.asarray(alpha, dtype=np.float32)[..., None] / 255
    colours = np.where(share > 0, (seen - _WHITE * (1 - share)) / np.maximum(share, 1 / 255), _WHITE)
    result = Image.fromarray(np.rint(colours.clip(0, 255)).astype(np.uint8))
    result.putalpha(alpha)
    return result


@contextmanager
def _alone(out: Path) -> Generator[None, None, None]:
    """Nobody else writes into the folder until the block is left."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".enlarging.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RecipeError(
            "Another process is writing enlarged pictures into this folder.",
            where=f"--out {printable(str(out))}",
            mend="Wait until it is done, or stop it.",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _enough_memory(wish: Wish) -> Generator[None, None, None]:
    try:
        yield
    except OUT_OF_MEMORY as error:
        if not ran_out(error):
            raise
        raise MemoryPlanError(
            f"There is not enough memory to make this picture {wish.target.width} x {wish.target.height}.",
            where=wish.picture.name,
            mend="Give a smaller --least or a smaller network; what is made stays, and a second run does the rest.",
        ) from error
