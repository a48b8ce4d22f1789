"""Captions in tables: which column holds them, and what may stand in it."""

import re
from collections.abc import Sequence
from typing import Final

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.sidecars import Words, clean_line

CAPTION_COLUMNS: Final = ("text", "caption", "captions", "prompt")  # looked for in this order
_MOST_LETTERS: Final = 1 << 20  # of one caption
MOST_CAPTIONS: Final = 1000  # of one picture
_SHOWN: Final = 20  # columns that a message names
_LINE_END: Final = re.compile("\r\n|[\r\n\u2028\u2029]")


def caption_column(columns: Sequence[str], wanted: str | None, where: str, setting: str) -> str | None:
    """The column of captions, or None where no column is called as one.

    Args:
        columns: those of the table.
        wanted: the one that the settings name, if they do.
        where: the table, safe to print.
        setting: how the setting is called, for the message.

    Raises:
        DataError: there is no column `wanted`, or several columns could be meant.
    """
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise DataError(f"There is no column {wanted!r}.", where=where, mend=f"Choose among: {shown(columns)}.")
    possible = [name for name in CAPTION_COLUMNS if name in columns]
    if len(possible) > 1:
        names = ", ".join(possible)
        raise DataError(f"Several columns may hold the captions: {names}.", where=where, mend=f"Say which: {setting}.")
    return possible[0] if possible else None


def lines_of(value: object, where: str) -> Words:
    """A caption, or a list of alternative captions; every line that is not empty is one.

    Raises:
        DataError: it is no text and no list of texts, or far too long.
    """
    texts = list(value) if isinstance(value, list | tuple) else [value]
    if len(texts) > MOST_CAPTIONS:
        raise DataError(f"These are more than {MOST_CAPTIONS:,} captions for one picture.", where=where)
    lines: dict[str, None] = {}
    removed = 0
    for text in texts:
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(f"The caption is no text but {_kind(text)}.", where=where, mend="Put it in quotes.")
        if len(text) > _MOST_LETTERS:
            raise DataError(f"The caption has more than {_MOST_LETTERS:,} letters.", where=where)
        for line in _LINE_END.split(text):
            clean, count = clean_line(line)
            removed += count
            if clean:
                lines[clean] = None
    remarks = (f"its caption held {removed} control characters; removed",) if removed else ()
    return Words(tuple(lines), remarks)


def shown(columns: Sequence[str]) -> str:
    """The names of columns, for a message."""
    names = ", ".join(printable(name)[:60] for name in columns[:_SHOWN])
    return f"{names}, and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else names or "none"


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, dict) else "something else"
