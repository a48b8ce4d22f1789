"""What every source of pictures can do."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from trainer.core.errors import DataError
from trainer.core.settings import Settings
from trainer.data.account import Draft
from trainer.data.captions import CaptionRules

Masks = Literal["none", "alpha", "files"]
Target = Literal["picture", "base"]

_STILL_MOVING: Final = 2_000_000_000  # nanoseconds: as long as a file system may need to give a change another time


def stamp_of(facts: os.stat_result, *place: int | str) -> str:
    """What changes whenever the bytes of a file may have changed: file, size, and times of change to the nanosecond.

    A program can set back the time of the last writing, but not that of the last change of the entry (`ctime`).
    Where the system does not keep it (Windows), or where the file was changed just now, so that a further change
    could have the same time, the stamp is empty: look again.

    Args:
        facts: of the file, or of the archive that holds it.
        place: where in the archive.
    """
    if os.name == "nt" or time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) < _STILL_MOVING:
        return ""
    parts = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, *place)
    return "-".join(str(part) for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A picture that a source holds, not yet looked at."""

    locator: str  # by what `Reader.read` finds its bytes
    name: str  # inside the source, safe to print
    stamp: str  # changes whenever its bytes may have changed; empty: it is looked at again each time
    captions: tuple[str, ...] = ()
    class_words: str = ""
    remarks: tuple[str, ...] = ()  # become warnings of the account
    refusal: DataError | None = None  # why its words, or itself, cannot be used
    repeats: int = 1  # times the source's own
    mask: str = ""  # locator of its mask file
    mask_stamp: str = ""


class Reader(ABC):
    """An open source: says what it holds and gives the bytes of any of it. May be used by several threads at once."""

    @abstractmethod
    def list(self, draft: Draft) -> Iterator[Found]:
        """The pictures, in an order that no file system can change.

        Everything else that the source holds is written into `draft`, each file or member exactly once: a caption,
        refused, or passed over.

        Raises:
            DataError: the source does not exist, or holds nothing that is meant to be a picture.
        """

    @abstractmethod
    def read(self, locator: str, most: int) -> bytes:
        """All bytes of a picture, or of a mask.

        Raises:
            DataError: it is gone, no regular file, or larger than `most` bytes.
        """

    @abstractmethod
    def where(self, locator: str) -> str:
        """How messages call what is at `locator`; safe to print."""


class Source(Settings, ABC):
    """Where pictures and their words come from."""

    repeats: PositiveInt = 1
    """How often each picture is seen in one epoch."""
    weight: PositiveFloat = 1.0
    """How much the loss of these pictures counts; for regularisation pictures, the prior-preservation weight."""
    regularisation: bool = False
    """Ordinary pictures that keep what the base knows: their captions stay as they are, without the trigger."""
    target: Target = "picture"
    """What the network shall answer for these pictures: what is in them (`picture`), or what the base model itself
    answers for them (`base`), so that it stays as it is there and no class pictures are needed. The latter is for
    regularisation pictures, which may be the training pictures once more, with captions without the trigger."""
    held_out: bool = False
    """Kept back: never trained on, there to judge by."""
    resolution: PositiveInt | None = None
    """Side of the square bucket of these pictures; nothing said: data.resolution."""
    flip: bool | None = None
    """Whether these pictures are also shown mirrored; nothing said: data.flip."""
    captions: CaptionRules | None = None
    """How the captions of these pictures are treated; what is not said here is as in data.captions."""
    masks: Masks = "none"
    """Which parts of a picture are learned from: all of it (`none`), what is not transparent (`alpha`), or what is
    white in a mask file beside it (`files`: NAME-masklabel.png, NAME_mask.png, NAME.mask.png, masks/NAME.png)."""

    @model_validator(mode="after")
    def _the_base_answers_for_ordinary_pictures(self) -> Self:
        if self.target == "base" and not self.regularisation:
            raise ValueError(
                "target: base keeps the base model's answers, and is for sources with regularisation: true; else the "
                "trigger would be put into their captions, and kept from meaning anything."
            )
        return self

    @property
    @abstractmethod
    def title(self) -> str:
        """How messages call the source: its path or name."""

    @abstractmethod
    def open(self) -> Reader:
        """The source, ready to be read.

        Raises:
            DataError: it does not exist.
        """

    def parts(self) -> "tuple[Source, ...]":
        """The sources that this one stands for; itself, unless it is a list of others.

        Raises:
            DataError: the list cannot be read.
        """
        return (self,)

    def notes(self) -> tuple[str, ...]:
        """What to know of the settings themselves, such as what another program's file says and we do otherwise."""
        return ()
