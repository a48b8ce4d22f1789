"""Caption files: bytes -> words, never guessed."""

import codecs
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.decoding import read_regular

MOST_CAPTION_BYTES: Final = 1 << 20
_MARKS: Final = (  # the four-byte marks begin like the two-byte ones, so they come first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DIRECTIONS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_LINE_END: Final = re.compile("\r\n|[\r\n\u2028\u2029]")
_SPACES: Final = dict.fromkeys(map(ord, "\t\v\f\x1c\x1d\x1e\x1f\x85"), " ")  # control characters that part words
_CONTROLS: Final = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_REPLACEMENT: Final = "\ufffd"  # what a decoder leaves behind that did not understand


@dataclass(frozen=True, slots=True)
class Words:
    """The captions in a file, one a line, and what had to be decided on the way."""

    lines: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def read_caption(path: Path) -> Words:
    """The captions in a file.

    Raises:
        DataError: it is no regular file, or as `decode_caption`.
    """
    return decode_caption(read_regular(path, MOST_CAPTION_BYTES), printable(str(path)))


def decode_caption(content: bytes, where: str) -> Words:
    """Captions out of a file's bytes: UTF-8, or UTF-16 and UTF-32 with a byte-order mark.

    Every line that is not empty is a caption of its own; several are alternatives.

    Raises:
        DataError: it has more than 1 MiB, is in another encoding, or is no text.
    """
    if len(content) > MOST_CAPTION_BYTES:
        raise DataError(f"This caption is larger than {MOST_CAPTION_BYTES:,} bytes.", where=where)
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise _unreadable(where, f"byte {error.start} is no {encoding.upper()}") from error
    # UTF-16 of most scripts is valid UTF-8 too, but every second character is then a control character.
    if len(_CONTROLS.findall(text)) * 4 >= max(len(text), 1):
        raise _unreadable(where, "UTF-16 without a byte-order mark, or no text at all")
    cleaned = [clean_line(line) for line in _LINE_END.split(text)]
    lines = tuple(line for line, _ in cleaned if line)
    return Words(lines, tuple(_remarks(lines, sum(removed for _, removed in cleaned))))


def clean_line(text: str) -> tuple[str, int]:
    """`text` on one line, and how many control and direction-changing characters were taken out of it."""
    if text.isprintable():
        return text.strip(), 0
    spaced = text.translate(_SPACES)
    kept = "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cs") and c not in _DIRECTIONS)
    return kept.strip(), len(spaced) - len(kept)


def _remarks(lines: tuple[str, ...], removed: int) -> list[str]:
    remarks: list[str] = []
    if len(lines) > 1:
        remarks.append(f"has {len(lines)} lines; each is a caption of its own")
    if removed:
        remarks.append(f"held {removed} control characters; removed")
    if any(_REPLACEMENT in line for line in lines):
        remarks.append(f"holds the character {_REPLACEMENT}: letters were lost in an earlier conversion")
    return remarks


def _unreadable(where: str, reason: str) -> DataError:
    return DataError(
        f"This caption is not in UTF-8 ({reason}).",
        where=where,
        mend="Save it as UTF-8 in your editor.",
    )
