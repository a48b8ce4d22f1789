"""What stands around the pixels in a picture file: its format, size, orientation, profile; read before decoding."""

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from trainer.data.example import Size
from trainer.data.jpeg import OpenedJpeg
from trainer.data.png import open_png
from trainer.data.tiff import open_tiff

_ORIENTATION: Final = 0x0112  # in EXIF and TIFF
_RUN_LENGTHS: Final = (BmpImageFile.COMPRESSIONS["RLE8"], BmpImageFile.COMPRESSIONS["RLE4"])
_MOST_RUN_LENGTH: Final = 4_000_000  # Pillow unpacks them in Python
_XMP_ORIENTATION: Final = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
_SEVERAL: Final = "holds several frames; the first one is used"
TURNS: Final = {  # EXIF's number: what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooManyPixelsError(Exception):
    """The header promises more pixels than are allowed."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(f"{size[0]} x {size[1]} pixels")
        self.size = size


class UnknownFormatError(Exception):
    """The content is of no format that we read; the message says of which, if it is known."""


@dataclass(slots=True)
class Container:
    """A picture file that was opened, but not decoded."""

    image: ImageFile  # not loaded
    orientation: int = 1  # EXIF's number, 1 .. 8
    profile: bytes | None = None  # ICC
    white: int | None = None  # the largest value of a grey of more than 8 bits; None: by its mode
    inverted: bool = False  # whether 0 is white
    remarks: list[str] = field(default_factory=list[str])
    reduce: Callable[[int], None] | None = None  # lets it be decoded at 1/n of its size, n of 2, 4, 8
    check_end: Callable[[], None] | None = (
        None  # raises SyntaxError where the last of the loaded pixels are not the file's
    )

    @property
    def size(self) -> Size:
        """Upright."""
        width, height = self.image.size
        return Size(height, width) if self.orientation >= 5 else Size(width, height)

    def load(self) -> None:
        """Decode the pixels.

        Raises:
            Whatever Pillow's readers raise on damaged files.
        """
        self.image.load()
        if self.check_end is not None:
            self.check_end()


def format_of(head: bytes) -> str | None:
    """The format that a file's first 16 bytes announce, of those that we read."""
    for name, starts in _STARTS.items():
        if head.startswith(starts):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    return None


def open_container(content: bytes, most_pixels: int) -> Container:
    """Read everything but the pixels.

    Raises:
        UnknownFormatError: it is of no format that we read.
        TooManyPixelsError: it promises more than `most_pixels`.
        Whatever Pillow's readers raise on damaged files.
    """
    kind = format_of(content[:16])
    if kind is None:
        raise UnknownFormatError(_name_of_other(content[:1024]))
    container = _OPENERS[kind](content, most_pixels)
    width, height = container.image.size
    if width * height > most_pixels:
        raise TooManyPixelsError((width, height))
    return container


def _open_png(content: bytes, _most: int) -> Container:
    opened = open_png(content)
    container = _opened(opened.image, several=opened.several)
    container.profile, container.check_end = opened.profile, opened.check_end
    container.remarks += opened.remarks
    return container


def _open_jpeg(content: bytes, most: int) -> Container:
    opened = OpenedJpeg(content, most)
    container = _opened(opened.image)
    container.reduce, container.check_end = opened.reduce, opened.check_end
    if not opened.ended:  # the decoder makes pixels even of the zeros of a broken download
        container.remarks.append("has no end mark, so its lower part may be missing")
    return container


def _open_bmp(content: bytes, _most: int) -> Container:
    image = BmpImageFile(io.BytesIO(content))
    packed = image.info.get("compression") in _RUN_LENGTHS
    if packed and max(image.width * image.height, len(content)) > _MOST_RUN_LENGTH:
        raise SyntaxError(f"with run-length packing, more than {_MOST_RUN_LENGTH:,} pixels take too long to unpack")
    return _opened(image)


def _open_gif(content: bytes, _most: int) -> Container:
    image = GifImageFile(io.BytesIO(content))
    return _opened(image, several=image.is_animated)


def _open_webp(content: bytes, most: int) -> Container:
    size = _webp_canvas(content)
    if size is not None and size[0] * size[1] > most:  # its decoder takes memory for the canvas when it is opened
        raise TooManyPixelsError(size)
    image = WebPImageFile(io.BytesIO(content))
    return _opened(image, several=image.is_animated)


def _open_avif(content: bytes, _most: int) -> Container:
    image = AvifImageFile(io.BytesIO(content))
    return _opened(image, several=image.is_animated)


def _open_tiff(content: bytes, most: int) -> Container:
    opened = open_tiff(content)
    if opened.tile[0] * opened.tile[1] > most:  # a small picture can be cut out of one enormous tile
        raise TooManyPixelsError(opened.tile)
    container = _opened(opened.image, several=opened.several)
    container.orientation = 1  # Pillow turns it by itself while loading
    container.white, container.inverted = opened.white, opened.inverted
    return container


def _opened(image: ImageFile, *, several: bool = False) -> Container:
    container = Container(image, profile=image.info.get("icc_profile"))
    if several:
        container.remarks.append(_SEVERAL)
    try:
        container.orientation = orientation_of(image.info)
    except (ValueError, struct.error):
        container.remarks.append("its EXIF data are damaged; taken as upright")
    return container


def orientation_of(info: dict[str | tuple[int, int], object]) -> int:
    """EXIF's number of how to make the picture upright, out of its EXIF data or else its XMP.

    Only the one tag is read: Pillow would read them all, and a few bytes can claim gigabytes.

    Raises:
        ValueError, struct.error: the EXIF data are damaged.
    """
    exif = info.get("exif")
    if not exif and isinstance(raw := info.get("Raw profile type exif"), str):  # ImageMagick's way
        exif = bytes.fromhex("".join(raw.split("\n")[3:]))
    found = _exif_orientation(exif) if isinstance(exif, bytes) else None
    if found is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
        text = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
        match = _XMP_ORIENTATION.search(text) if isinstance(text, bytes) else None
        found = int(match[1]) if match else 1
    return found if found in TURNS else 1


def _exif_orientation(exif: bytes) -> int | None:
    """EXIF 2.32, section 4.5: a TIFF header, then the entries of the first directory."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    if not exif:
        return None
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("no TIFF header")
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", exif, at)
        if tag == _ORIENTATION and number:
            return struct.unpack_from(order + {1: "B", 4: "I"}.get(kind, "H"), exif, at + 8)[0]
    return None


def _webp_canvas(content: bytes) -> tuple[int, int] | None:
    """Width and height by the first chunk: RFC 9649, sections 2.5 to 2.7."""
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _name_of_other(head: bytes) -> str:
    """What a file is that is none of our formats, as far as its beginning says."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, name in _OTHERS:
        if head.startswith(start) or text.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return "a HEIC picture or a film"
    if head and not head.strip(b"\0"):
        return "a file full of zeros"
    return "of no format that is known"


_STARTS: Final[dict[str, bytes | tuple[bytes, ...]]] = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff",
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": b"BM",
}
_OPENERS: Final[dict[str, Callable[[bytes, int], Container]]] = {
    "PNG": _open_png,
    "JPEG": _open_jpeg,
    "WEBP": _open_webp,
    "BMP": _open_bmp,
    "GIF": _open_gif,
    "TIFF": _open_tiff,
    "AVIF": _open_avif,
}
_OTHERS: Final = (
    (b"<svg", "a vector picture (SVG)"),
    (b"<!doctype html", "a web page (HTML)"),
    (b"<html", "a web page (HTML)"),
    (b"<?xml", "an XML file, perhaps a vector picture (SVG)"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript file (EPS)"),
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"PK\x03\x04", "an archive (ZIP)"),
    (b"\x1f\x8b", "a compressed file (GZIP)"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded (`git lfs pull`)"),
    (b"{", "a JSON file"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"v/1\x01", "an OpenEXR picture"),
)
