"""Caption files: bytes -> words, never guessed."""

import codecs
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.core.errors import DataError
from trainer.data.decoding import read_regular

_MOST_BYTES: Final = 1 << 20
_MARKS: Final = (  # the four-byte marks begin like the two-byte ones, so they come first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DIRECTIONS: Final = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


@dataclass(frozen=True, slots=True)
class Words:
    """The caption in a file, and what had to be decided on the way."""

    text: str
    remarks: tuple[str, ...] = ()


def read_caption(path: Path) -> Words:
    """The words in a caption file: UTF-8, or UTF-16 and UTF-32 with a byte-order mark; lines are joined by spaces.

    Raises:
        DataError: it is no regular file, larger than 1 MiB, or in another encoding.
    """
    content = read_regular(path, _MOST_BYTES)
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and content.count(0) * 4 >= max(len(content), 1):
        raise _unreadable(path, "UTF-16 without a byte-order mark, or no text at all")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"byte {error.start} is no {encoding.upper()}") from error
    return clean(text)


def clean(text: str) -> Words:
    """`text` on one line, without control and direction-changing characters."""
    remarks: list[str] = []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = " ".join(lines).replace("\t", " ")
    kept = "".join(c for c in joined if unicodedata.category(c) not in ("Cc", "Cs") and c not in _DIRECTIONS)
    if len(lines) > 1:
        remarks.append(f"has {len(lines)} lines; joined into one caption")
    if kept != joined:
        remarks.append(f"held {len(joined) - len(kept)} control characters; removed")
    return Words(kept.strip(), tuple(remarks))


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"This caption is not in UTF-8 ({reason}).",
        where=str(path),
        mend="Save it as UTF-8 in your editor.",
    )
