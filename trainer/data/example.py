"""One picture and what is known of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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

    path: Path
    name: str  # the path inside its source, safe to print
    key: str  # SHA-256 of the file's bytes, hexadecimal
    size: Size  # upright, as a person sees it
    caption: str  # as the person wrote it, before any rule
    source: int  # which of the recipe's sources it came from
    repeats: int  # how often it is seen in one epoch
    weight: float  # how much its loss counts
    regularisation: bool  # an ordinary picture that keeps what the base knows
