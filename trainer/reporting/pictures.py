"""Pictures as the page holds them: made anew, with nothing of their files but pixels, and as small as they must be."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from trainer.core.errors import DataError
from trainer.data.decoding import ImageLimits, decode

_QUALITY: Final = 80
_BYTES_A_PIXEL: Final = 0.25  # of WebP at our quality, where a picture is full of detail
_LEAST: Final = 32  # pixels: nothing is made smaller than that
_LETTERS_A_BYTE: Final = 4 / 3  # of base64
_HEAD: Final = "data:image/webp;base64,"
_EXACT: Final = 128  # pixels: such small pictures are kept as they are, bit for bit, where there is room
_LIMITS: Final = ImageLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A picture inside the page."""

    width: int
    height: int
    content: str  # a data URI


def open_picture(path: Path) -> Image.Image | None:
    """The pixels of a picture file; None where it is gone, torn, or larger than pictures may be."""
    try:
        if path.stat().st_size > _LIMITS.bytes:
            return None
        return decode(path.read_bytes(), path.name, _LIMITS).image
    except (OSError, DataError):
        return None


def embed(picture: Image.Image, longest: int, letters: int) -> Embedded:
    """The picture as a data URI of at most about `letters` letters.

    Args:
        picture: RGB.
        longest: pixels of its longer side; a larger one is made smaller.
        letters: its share of the page. A picture of 32 pixels may take more.
    """
    whole = picture.convert("RGB")
    largest = min(max(whole.size), longest)
    room = int((letters - len(_HEAD)) / _LETTERS_A_BYTE)
    if largest <= _EXACT and len(exact := _webp(_shrunk(whole, largest), lossless=True)) <= room:
        return _embedded(_shrunk(whole, largest), exact)
    side = max(min(int((max(room, 0) / _BYTES_A_PIXEL) ** 0.5), largest), min(_LEAST, largest))
    content = _webp(small := _shrunk(whole, side))
    if len(content) < room / 2 and side < largest:  # plainer than most: it may be larger
        wider = _shrunk(whole, min(largest, int(side * (0.85 * room / len(content)) ** 0.5)))
        if len(better := _webp(wider)) <= room:
            return _embedded(wider, better)
    while len(content) > room and side > _LEAST:
        side = max(int(side * max(0.5, (0.9 * max(room, 1) / len(content)) ** 0.5)), _LEAST)
        content = _webp(small := _shrunk(whole, side))
    return _embedded(small, content)


def evenly(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of the items, spread evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    if most <= 1:
        return list(items[-1:]) if most == 1 else []
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    """A copy whose longer side has at most so many pixels."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _webp(picture: Image.Image, *, lossless: bool = False) -> bytes:
    file = io.BytesIO()
    # a new picture: Pillow writes out what it remembers of the old one's file
    plain = Image.frombytes("RGB", picture.size, picture.tobytes())
    plain.save(file, "WEBP", quality=_QUALITY, lossless=lossless, method=2)  # quick, and hardly larger
    return file.getvalue()


def _embedded(picture: Image.Image, content: bytes) -> Embedded:
    letters = f"{_HEAD}{base64.b64encode(content).decode('ascii')}"
    return Embedded(width=picture.width, height=picture.height, content=letters)
