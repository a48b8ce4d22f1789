"""Open a picture safely: a regular file within limits, upright, in sRGB, without transparency."""

import hashlib
import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError
from pydantic import Field, PositiveInt

from trainer.core.errors import DataError
from trainer.core.settings import Settings
from trainer.data.colours import as_srgb

DECODER_VERSION: Final = 1  # raise it when the same file would give other pixels, so that caches are rebuilt
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # decided by content, not by the file's name
_ORIENTATION: Final = 0x0112  # the EXIF tag
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders were seen to raise on damaged files; an `except Exception` would hide our own mistakes.
_DAMAGE: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class ImageLimits(Settings):
    """How large a picture may be; larger ones are refused before they are decoded."""

    pixels: PositiveInt = Field(default=64_000_000, le=178_956_970)
    """Width times height at most. Pillow itself stops at 178,956,970."""
    bytes: PositiveInt = 268_435_456
    """Size of the file at most."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded file: its pixels, its content key, and what had to be decided on the way."""

    image: Image.Image  # RGB, 8 bits, upright
    key: str  # SHA-256 of the file's bytes
    remarks: tuple[str, ...]


def open_image(path: Path, limits: ImageLimits) -> Image.Image:
    """The picture in `path`, upright, as sRGB of 8 bits; transparent parts become white, an animation its first frame.

    Raises:
        DataError: the file is no regular file or no picture, is cut short, or is larger than `limits` allows.
    """
    return read_picture(path, limits).image


def read_picture(path: Path, limits: ImageLimits) -> Picture:
    """The same as `open_image`, with the key of the very bytes that were decoded.

    Raises:
        DataError: as `open_image`.
    """
    content = read_regular(path, limits.bytes)
    if not content:
        raise DataError("This file is empty.", where=str(path), mend="Copy it again, or remove it.")
    image, remarks = _decode(content, path, limits)
    return Picture(image, hashlib.sha256(content).hexdigest(), tuple(remarks))


def read_regular(path: Path, most: int) -> bytes:
    """All bytes of a regular file that is no link; never waits on a pipe or a device.

    Raises:
        DataError: it is something else, cannot be read, or has more than `most` bytes.
    """
    # Windows has neither flag, and neither pipes nor devices among ordinary files.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # before opening: to open a device can already do something
            raise DataError("This is no regular file.", where=str(path), mend="Remove it from the folder.")
        with os.fdopen(os.open(path, flags), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise DataError("This is no regular file.", where=str(path), mend="Remove it from the folder.")
            content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"This file cannot be read: {error.strerror}.", where=str(path)) from error
    if len(content) > most:
        raise DataError(f"This file is larger than {most:,} bytes.", where=str(path), mend="Save it smaller.")
    return content


def looks_like_picture(head: bytes) -> bool:
    """Whether a file's first 16 bytes are those of a format that we read."""
    return (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:12] in (b"ftypavif", b"ftypavis"))
    )


def _decode(content: bytes, path: Path, limits: ImageLimits) -> tuple[Image.Image, list[str]]:
    try:
        # The checksums of a PNG are looked at by `verify` alone, which leaves its object unusable.
        with Image.open(io.BytesIO(content), formats=FORMATS) as probe:
            _check_size(probe.size, path, limits)
            if probe.format == "PNG":
                probe.verify()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            remarks = _remarks(image)
            image.load()
            upright = _upright(image, remarks)
            return as_srgb(upright, image.info.get("icc_profile"), remarks), remarks
    except UnidentifiedImageError as error:
        names = ", ".join(FORMATS)
        raise DataError(
            "This is no picture that can be read.",
            where=str(path),
            mend=f"Use one of {names}; or remove the file.",
        ) from error
    except (Image.DecompressionBombError, *_DAMAGE) as error:
        raise DataError(
            f"This picture is damaged or cut short: {error}.",
            where=str(path),
            mend="Copy or download it again, or remove it.",
        ) from error


def _check_size(size: tuple[int, int], path: Path, limits: ImageLimits) -> None:
    if size[0] * size[1] > limits.pixels:
        raise DataError(
            f"This picture has {size[0]} x {size[1]} pixels, more than {limits.pixels:,}.",
            where=str(path),
            mend="Save it smaller, or raise data.limits.pixels.",
        )


def _remarks(image: Image.Image) -> list[str]:
    # Only formats that can hold several frames have the attribute.
    return ["holds several frames; the first one is used"] if getattr(image, "is_animated", False) else []


def _upright(image: Image.Image, remarks: list[str]) -> Image.Image:
    """Turned as its EXIF says; asked after loading, since Pillow turns TIFF by itself and then removes the tag."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        remarks.append("its EXIF data are damaged; taken as upright")
        turn = None
    return image if turn is None else image.transpose(turn)
