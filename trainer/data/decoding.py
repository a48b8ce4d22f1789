"""Bytes of a picture -> its pixels: within limits, upright, in sRGB, without transparency."""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3
from PIL import Image
from pydantic import Field, PositiveInt

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.core.settings import Settings
from trainer.data.colours import as_mask, as_srgb, check_colours
from trainer.data.containers import (
    TURNS,
    TooManyPixelsError,
    UnknownFormatError,
    format_of,
    open_container,
)
from trainer.data.example import Size

DECODER_VERSION: Final = 2  # raise it when the same file would give other pixels, so that caches are rebuilt
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # decided by content, not by the file's name
# A reduced JPEG has at least this many times the pixels that are needed, along each side. Measured on photographs after
# resizing (lab book): with 2, up to every fourth pixel is off by more than 2/255; with 4, one in fifty where chroma is
# subsampled and colours are strong, and most often none.
_ENOUGH: Final = 4
# What Pillow's decoders were seen to raise on damaged files; an `except Exception` would hide our own mistakes.
_DAMAGE: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)
# Pillow's warnings of odd metadata show lines of its source. Once a process: `catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageLimits(Settings):
    """How large a picture may be; larger ones are refused before they are decoded."""

    pixels: PositiveInt = Field(default=64_000_000, le=178_956_970)
    """Width times height at most. Pillow itself stops at 178,956,970."""
    bytes: PositiveInt = 268_435_456
    """Size of the file at most."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, and what had to be decided on the way."""

    image: Image.Image  # RGB, 8 bits, upright
    alpha: Image.Image | None  # L, upright; 255 = not transparent; None: nothing is transparent
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a picture that can be decoded."""

    size: Size  # upright
    remarks: tuple[str, ...]


def digest(content: bytes) -> str:
    """BLAKE3 of `content`, 64 hexadecimal characters: the key of a picture."""
    return blake3(content).hexdigest()


def read_regular(path: Path, most: int) -> bytes:
    """All bytes of a regular file that is no link; never waits on a pipe or a device.

    Raises:
        DataError: it is something else, cannot be read, or has more than `most` bytes.
    """
    # Windows has neither flag, and neither pipes nor devices among ordinary files.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    where = printable(str(path))
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # before opening: to open a device can already do something
            raise _not_regular(where)
        with os.fdopen(os.open(path, flags), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise _not_regular(where)
            content = b"" if facts.st_size > most else file.read(facts.st_size + 1)
    except OSError as error:
        raise DataError(f"This file cannot be read: {error.strerror}.", where=where) from error
    if facts.st_size > most:
        raise DataError(f"This file is larger than {most:,} bytes.", where=where, mend="Save it smaller.")
    if len(content) != facts.st_size:
        raise DataError("This file is being written.", where=where, mend="Start again when it is complete.")
    return content


def looks_like_picture(head: bytes) -> bool:
    """Whether a file's first 16 bytes are those of a format that we read; BMP's two are too common to say so."""
    return format_of(head) not in (None, "BMP")


def open_image(path: Path, limits: ImageLimits) -> Image.Image:
    """The picture in `path`, upright, as sRGB of 8 bits; transparent parts become white, an animation its first frame.

    Raises:
        DataError: the file is no regular file or no picture, is cut short, or is larger than `limits` allows.
    """
    return decode(read_regular(path, limits.bytes), printable(str(path)), limits).image


def decode(content: bytes, where: str, limits: ImageLimits, *, least: Size | None = None) -> Picture:
    """The pixels of a picture file.

    Args:
        content: the file's bytes.
        where: how messages call it.
        limits: larger pictures are refused before they are decoded.
        least: the picture will be resized so that it just covers this size, upright. A JPEG may then be decoded at a
            half, a quarter or an eighth of its size, if that is still at least four times `least` along both sides and
            divides its sides without a rest, so that nothing moves.

    Raises:
        DataError: it is no picture, is cut short or damaged, or is larger than `limits` allows.
    """
    with _explained(content, where, limits):
        container = open_container(content, limits.pixels)
        if least is not None and container.reduce is not None:
            container.reduce(_part_for(container.size, least))
        container.load()
        image, alpha = as_srgb(container)
        turn = TURNS.get(container.orientation)
        if turn is not None:
            image, alpha = image.transpose(turn), alpha and alpha.transpose(turn)
        return Picture(image, alpha, tuple(container.remarks))


def look(content: bytes, where: str, limits: ImageLimits) -> Sight:
    """Whether `decode` would succeed, and what it would say, for less.

    Every byte of the picture is decoded; what cannot fail afterwards is left out.

    Raises:
        DataError: as `decode`.
    """
    with _explained(content, where, limits):
        container = open_container(content, limits.pixels)
        size = container.size
        if container.reduce is not None:
            container.reduce(8)
        container.load()
        check_colours(container)
        if container.image.format == "TIFF":
            size = Size(*container.image.size)
        return Sight(size, tuple(container.remarks))


def decode_mask(content: bytes, where: str, limits: ImageLimits) -> Image.Image:
    """A mask file as 8-bit grey, upright: white is learned from, black and transparent parts are not.

    Raises:
        DataError: as `decode`.
    """
    with _explained(content, where, limits):
        container = open_container(content, limits.pixels)
        container.load()
        mask = as_mask(container)
        turn = TURNS.get(container.orientation)
        return mask if turn is None else mask.transpose(turn)


def _part_for(size: Size, least: Size) -> int:
    """At which fraction of its size a picture may be decoded."""
    for part in (8, 4, 2):
        if all(side % part == 0 and side // part >= _ENOUGH * need for side, need in zip(size, least, strict=True)):
            return part
    return 1


@contextmanager
def _explained(content: bytes, where: str, limits: ImageLimits) -> Generator[None, None, None]:
    """Whatever goes wrong in decoding, as a message to the user."""
    if not content:
        raise DataError("This file is empty.", where=where, mend="Copy it again, or remove it.")
    try:
        yield
    except TooManyPixelsError as error:
        raise DataError(
            f"This picture has {error}, more than {limits.pixels:,}.",
            where=where,
            mend="Save it smaller, or raise data.limits.pixels.",
        ) from error
    except UnknownFormatError as error:
        raise DataError(
            f"This is no picture that can be read, but {error}.",
            where=where,
            mend=f"Use one of {', '.join(FORMATS)}; or remove the file.",
        ) from error
    except (Image.DecompressionBombError, *_DAMAGE) as error:
        reason = printable(str(error)) or type(error).__name__
        raise DataError(
            f"This {format_of(content[:16])} picture is damaged or cut short: {reason}.",
            where=where,
            mend="Copy or download it again, or remove it.",
        ) from error


def _not_regular(where: str) -> DataError:
    return DataError("This is no regular file.", where=where, mend="Remove it from the folder.")
