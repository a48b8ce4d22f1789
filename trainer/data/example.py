"""One picture and what is known of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, how many are done, how many there are)."""


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One accepted picture with its words."""

    source: int  # which of the recipe's sources it came from, parts of sources counted one by one
    locator: str  # by what its source finds its bytes again; may hold surrogates, so it is never shown
    name: str  # inside its source, safe to print
    key: str  # BLAKE3 of the file's bytes, hexadecimal
    size: Size  # upright, as a person sees it
    captions: tuple[str, ...] = ()  # as a person wrote them, before any rule; several are alternatives
    class_words: str = ""  # of a folder in sd-scripts' form `10_name class`
    repeats: int = 1  # how often it is seen in one epoch
    weight: float = 1.0  # how much its loss counts
    regularisation: bool = False  # an ordinary picture that keeps what the base knows
    held_out: bool = False  # kept back from training, to judge by
    mask: str = ""  # locator of its mask file, if it has one
    mask_key: str = ""  # BLAKE3 of the mask file; "alpha" for the picture's own transparency; "" without a mask

    @property
    def caption(self) -> str:
        """Its first caption, or the words of its folder, or nothing."""
        return self.captions[0] if self.captions else self.class_words
