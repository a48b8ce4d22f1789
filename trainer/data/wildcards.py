r"""`{red|green|blue}` -> one of them. Braces nest; a choice may be empty; `\{` and `\}` are braces as such."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final

Pick = Callable[[int, int], int]
"""Called as (which choice of the text, how many options it has); gives the option taken, counted from 0."""

_SIGN: Final = re.compile(r"\\?[{}|]")
_ESCAPED_BRACE: Final = re.compile(r"\\([{}])")
_ESCAPED: Final = re.compile(r"\\([{}|])")


def has_choices(text: str) -> bool:
    """Whether the text holds a choice: braces that close, with a bar right inside them."""
    return next(_choices_of(text), None) is not None


def resolve(text: str, pick: Pick) -> str:
    """The text with one option of each choice in its place.

    Braces that do not close, and braces without a bar of their own, are no choice and stay. A backslash takes its
    meaning from a brace anywhere and from a bar inside a choice, and goes; every other backslash stays. Choices inside
    an option that is not taken are not asked for. The work is linear in the text, however deep the braces nest.

    Args:
        text: as it was written.
        pick: takes an option.
    """
    choices = {edges[0]: edges for edges in _choices_of(text)}
    openings = sorted(choices)
    pieces: list[str] = []
    ranges = [(0, len(text), _ESCAPED_BRACE)]  # what is still to be read, the next part last
    while ranges:
        start, stop, escaped = ranges.pop()
        place = bisect_left(openings, start)
        opening = openings[place] if place < len(openings) else stop
        pieces.append(escaped.sub(r"\1", text[start : min(opening, stop)]))
        if opening >= stop:
            continue
        edges = choices[opening]
        option = pick(place, len(edges) - 1)
        ranges.append((edges[-1] + 1, stop, escaped))
        ranges.append((edges[option] + 1, edges[option + 1], _ESCAPED))
    return "".join(pieces)


def _choices_of(text: str) -> Iterator[tuple[int, ...]]:
    """Of each choice, where its opening brace, its bars and its closing brace stand; inner choices come first."""
    still_open: list[list[int]] = []
    for sign in _SIGN.finditer(text):
        if sign[0] == "{":
            still_open.append([sign.start()])
        elif sign[0] == "|" and still_open:
            still_open[-1].append(sign.start())
        elif sign[0] == "}" and still_open:
            edges = (*still_open.pop(), sign.start())
            if len(edges) > 2:
                yield edges
