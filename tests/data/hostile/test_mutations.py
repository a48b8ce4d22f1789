"""Thousands of files that nobody thought of: good ones with something broken in them, always the same ones."""

import random
import struct
import sys
import time
import zlib
from typing import TYPE_CHECKING

import pytest

from trainer.core.errors import DataError
from trainer.data.decoding import ImageLimits, decode, decode_mask, look
from trainer.data.sidecars import decode_caption

if TYPE_CHECKING:
    from hostile_case import Case

pytestmark = [  # pytest undoes the filter of decoding.py
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

LIMITS = ImageLimits(pixels=4_000_000)
COUNT = 2_500
MOST_SECONDS = 30  # a slow machine tries fewer
LONGEST = 10.0  # seconds a file
GROWTH = 300  # MiB
_NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xff\xff", b"\0\1\0\0")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The same with a few bytes changed, lost, doubled or moved."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if not found:
            break
        at = chance.randrange(min(len(found), chance.choice((64, 400, len(found)))))
        kind = chance.randrange(6)
        if kind <= 1:
            found[at] = chance.randrange(256)
        elif kind == 2:
            found[at : at + 4] = chance.choice(_NUMBERS)
        elif kind == 3:
            del found[chance.randrange(len(found)) :]
        elif kind == 4:
            del found[at : at + chance.randrange(1, 16)]
        else:
            source = chance.randrange(len(found))
            found[at:at] = found[source : source + chance.randrange(1, 64)]
    return bytes(found)


def with_right_checksums(content: bytes) -> bytes:
    """A PNG whose damage its checksums do not show."""
    found, at = bytearray(content), 8
    while at + 12 <= len(found):
        end = at + 12 + int.from_bytes(found[at : at + 4], "big")
        if end > len(found):
            break
        found[end - 4 : end] = struct.pack(">I", zlib.crc32(found[at + 4 : end - 4]))
        at = end
    return bytes(found)


def answers(content: bytes) -> list[object]:
    """What looking, decoding, and decoding as a mask say; any error but DataError ends the test."""
    found: list[object] = []
    for verb in (look, decode, decode_mask):
        try:
            answer = verb(content, "here", LIMITS)
        except DataError as error:
            found.append(str(error))
        else:
            found.append(getattr(answer, "remarks", ()))  # a mask has none
    return found


def peak() -> int:
    """The most memory that this process ever held, in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.skipif(sys.platform == "win32", reason="memory is measured with the resource module")
def test_no_broken_file_gives_another_error_or_takes_long_or_much_memory(cases: "list[Case]") -> None:
    good = [
        case.content
        for case in cases
        if case.fate == "accepted" and isinstance(case.content, bytes) and len(case.content) < 20_000
        and not case.name.startswith(("names/", "captions/", "pairs/", "bomb/", "size/most"))
    ]  # fmt: skip
    chance, start, before = random.Random(20), time.monotonic(), peak()
    refused = tried = 0
    while tried < COUNT and time.monotonic() < start + MOST_SECONDS:
        content = mutated(chance.choice(good), chance)
        if content.startswith(b"\x89PNG") and chance.random() < 0.8:
            content = with_right_checksums(content)
        begun = time.monotonic()
        looked, decoded, masked = answers(content)
        assert time.monotonic() - begun < LONGEST
        # Of a picture without its last rows, looking sees a little more, since it sees it small.
        assert looked == decoded or "before its last row" in str(looked), content
        assert isinstance(masked, str) == isinstance(decoded, str), content
        tried += 1
        refused += isinstance(looked, str)
    assert tried >= 200
    assert 0.3 < refused / tried < 0.95, "the changes are too mild or too wild to test much"
    assert peak() - before <= GROWTH


def test_no_broken_caption_gives_another_error(cases: "list[Case]") -> None:
    captions = [case.content for case in cases if case.fate == "caption" and isinstance(case.content, bytes)]
    chance, refused = random.Random(21), 0
    for _ in range(2_000):
        try:
            words = decode_caption(mutated(chance.choice(captions)[:400], chance), "here")
        except DataError:
            refused += 1
        else:
            assert all(line.strip() and "\n" not in line and "\0" not in line for line in words.lines)
    assert 0 < refused < 2_000
