"""One file of the hostile set, and what it is painted with."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

Colour = tuple[int, int, int]
Probe = tuple[tuple[int, int], Colour]
Fate = Literal["accepted", "caption", "rejected", "ignored"]

RED, GREEN, BLUE, WHITE, BLACK = (220, 30, 30), (30, 200, 40), (40, 50, 210), (255, 255, 255), (0, 0, 0)
QUARTERS = (RED, GREEN, BLUE, WHITE)  # top left, top right, bottom left, bottom right
GREYS = (0, 85, 170, 255)
WIDTH, HEIGHT = 48, 32
NO_CAPTION = "has no caption"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, and its fate."""

    name: str  # inside the set; bytes that are no UTF-8 as surrogates
    content: bytes | Callable[[Path], object]  # or what makes the file
    fate: Fate = "accepted"
    says: str = ""  # part of the reason why it is refused or passed over
    warns: tuple[str, ...] = ()  # parts of all warnings about it, but for a missing caption
    size: tuple[int, int] = (WIDTH, HEIGHT)  # upright
    probes: tuple[Probe, ...] = ()
    near: int = 0  # how far a colour may be off
    captions: tuple[str, ...] | None = None  # None: a missing caption is allowed


def probes(colours: Iterable[Colour] = QUARTERS, size: tuple[int, int] = (WIDTH, HEIGHT)) -> tuple[Probe, ...]:
    """The middle of each quarter, with the colour that is expected there."""
    across, down = size[0] // 4, size[1] // 4
    places = ((across, down), (3 * across, down), (across, 3 * down), (3 * across, 3 * down))
    return tuple(zip(places, colours, strict=True))


def greys(values: Sequence[int] = GREYS) -> tuple[Probe, ...]:
    """The same for shades of grey."""
    return probes((value, value, value) for value in values)


def quarters(
    mode: str = "RGB", values: Sequence[Any] = QUARTERS, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Image.Image:
    """A picture of four colours."""
    image = Image.new(mode, size)
    across, down = size[0] // 2, size[1] // 2
    for value, place in zip(values, ((0, 0), (across, 0), (0, down), (across, down)), strict=True):
        image.paste(value, (*place, place[0] + across, place[1] + down))
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:  # options of Pillow's writers
    """The picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int], depth: int, colour: int, rows: bytes, *, before: bytes = b"", interlaced: int = 0
) -> bytes:
    """A PNG out of its rows, each with its filter byte; `before` stands before the pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def with_chunks(content: bytes, *chunks: bytes, last: bool = False) -> bytes:
    """A PNG with more chunks after its header, or before its end."""
    at = content.rindex(b"IEND") - 4 if last else 33
    return content[:at] + b"".join(chunks) + content[at:]


def run_length_bmp(size: tuple[int, int], packed: bytes) -> bytes:
    """A BMP in RLE8, with a palette of blue, white, red and green."""
    palette = bytes(value for colour in (BLUE, WHITE, RED, GREEN) for value in (*colour[::-1], 0))
    at = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, len(packed), 0, 0, 4, 0)
    return b"BM" + struct.pack("<IHHI", at + len(packed), 0, 0, at) + header + palette + packed


@dataclass(frozen=True, kw_only=True)
class Tiff:
    """A TIFF that no writer would write: its tags by number, with one pixel array of `data`."""

    data: bytes
    bits: tuple[int, ...] = (8,)
    photometric: int = 1
    size: tuple[int, int] = (WIDTH, HEIGHT)
    order: Literal["<", ">"] = "<"
    more: tuple[tuple[int, int, tuple[int, ...]], ...] = ()  # tag, type, values
    next: int = 0  # where the following directory starts

    def content(self) -> bytes:
        """The bytes: header, pixels, what does not fit into the directory, the directory."""
        tags: dict[int, tuple[int, tuple[int, ...]]] = {
            256: (4, (self.size[0],)),
            257: (4, (self.size[1],)),
            258: (3, self.bits),
            259: (3, (1,)),
            262: (3, (self.photometric,)),
            273: (4, (8,)),
            277: (3, (len(self.bits),)),
            278: (4, (self.size[1],)),
            279: (4, (len(self.data),)),
        }
        tags.update({tag: (kind, values) for tag, kind, values in self.more})
        asides, entries = self.data + b"\0" * (len(self.data) % 2), b""
        for tag, (kind, values) in sorted(tags.items()):
            body = struct.pack(f"{self.order}{len(values)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *values)
            if len(body) > 4:
                place = struct.pack(self.order + "I", 8 + len(asides))
                asides += body + b"\0" * (len(body) % 2)
            else:
                place = body.ljust(4, b"\0")
            entries += struct.pack(self.order + "HHI", tag, kind, len(values)) + place
        start = {"<": b"II*\0", ">": b"MM\0*"}[self.order] + struct.pack(self.order + "I", 8 + len(asides))
        directory = struct.pack(self.order + "H", len(tags)) + entries + struct.pack(self.order + "I", self.next)
        return start + asides + directory
