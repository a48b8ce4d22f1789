"""PNG files: every checksum is looked at, and only the chunks that make the picture are kept.

So nothing that stands beside the picture (texts that inflate to gigabytes, an animation's frames, a profile that is too
large) can do harm, or keep a good picture from being used.
"""

import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from PIL.PngImagePlugin import PngImageFile

_MOST_PROFILE: Final = 4 << 20
_PIECE: Final = 1 << 14
_MOST_CHUNKS: Final = 100_000
_HEADER, _PALETTE, _DATA, _END = b"IHDR", b"PLTE", b"IDAT", b"IEND"
_KEPT: Final = frozenset((_HEADER, _PALETTE, b"tRNS", b"eXIf"))
_CRITICAL: Final = frozenset((_HEADER, _PALETTE, _DATA, _END))
_GAMMA_ERROR: Final = 0.05
_EXIF_AS_TEXT: Final = b"Raw profile type exif\0"  # ImageMagick's way
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type
_ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_XMP: Final = b"XML:com.adobe.xmp\0\0"  # and not compressed


@dataclass(slots=True)
class OpenedPng:
    """The picture, not loaded, and what was taken out of the file."""

    image: PngImageFile
    rows: list[memoryview]  # the chunks with the pixels
    bits: int  # of a pixel
    profile: bytes | None = None
    several: bool = False
    remarks: list[str] = field(default_factory=list[str])

    def check_end(self) -> None:
        """Make sure that the last row of the loaded picture was in the file; Pillow leaves it black if it was not.

        Raises:
            SyntaxError: it was not.
        """
        width, height = self.image.size
        interlaced = bool(self.image.info.get("interlace"))  # then the last row but one is the last that is written
        last = self.image.crop((0, max(0, height - 1 - interlaced), width, height))
        if last.getbbox(alpha_only=False) is not None:
            return
        needed = _bytes_of_rows(width, height, self.bits, _ADAM7 if interlaced else ((0, 0, 1, 1),))
        if _inflated(self.rows, needed) < needed:
            raise SyntaxError("its pixels end before its last row")


def open_png(content: bytes) -> OpenedPng:
    """Read all chunks of a PNG.

    Raises:
        SyntaxError: it is cut short, a checksum is wrong, or a chunk without which it cannot be read is not known.
        ValueError: what Pillow's reader says of damaged chunks.
    """
    kept: list[bytes | memoryview] = [content[:8]]
    rows: list[memoryview] = []
    asides: dict[bytes, memoryview] = {}
    for kind, whole in _chunks(content):
        if kind == _DATA:
            rows.append(whole)
        elif kind in _KEPT or _says_orientation(kind, whole):
            kept.append(whole)
        else:
            asides.setdefault(kind, whole[8:-4])
    end = b"\0\0\0\0" + _END + struct.pack(">I", zlib.crc32(_END))
    image = PngImageFile(io.BytesIO(b"".join([*kept, *rows, end])))
    if image.mode == "P" and image.palette is None:
        raise SyntaxError("it has no palette")
    depth, colour = content[24], content[25]
    _correct_transparent_colour(image, depth, colour)
    opened = OpenedPng(image, rows, depth * _CHANNELS.get(colour, 1))
    opened.several = int.from_bytes(asides.get(b"acTL", b"")[:4], "big") > 1
    if b"iCCP" in asides:
        opened.profile = _profile_of(bytes(asides[b"iCCP"]), opened.remarks)
    opened.remarks += _colours_not_used(asides)
    return opened


def _chunks(content: bytes) -> "list[tuple[bytes, memoryview]]":
    """Type and the whole chunk, up to the end chunk; what stands behind that one is no part of the picture."""
    view, at, found = memoryview(content), 8, list[tuple[bytes, memoryview]]()
    while not found or found[-1][0] != _END:
        length = int.from_bytes(view[at : at + 4], "big")
        whole = view[at : at + 12 + length]
        if len(whole) < 12 + length or len(found) == _MOST_CHUNKS:
            raise SyntaxError("it ends before its end chunk")
        kind = bytes(whole[4:8])
        if zlib.crc32(whole[4:-4]) != int.from_bytes(whole[-4:], "big"):
            raise SyntaxError(f"the checksum of its chunk {kind!r} is wrong")
        if not kind[0] & 0x20 and kind not in _CRITICAL:  # a capital: a decoder has to know it
            raise SyntaxError(f"it has a chunk {kind!r} that only other programs know")
        found.append((kind, whole))
        at += len(whole)
    if found[0][0] != _HEADER or len(found[0][1]) != 25:
        raise SyntaxError("it has no header chunk")
    return found


def _says_orientation(kind: bytes, whole: memoryview) -> bool:
    start = bytes(whole[8:32])
    return (kind in (b"tEXt", b"zTXt") and start.startswith(_EXIF_AS_TEXT)) or (
        kind == b"iTXt" and start.startswith(_XMP)
    )


def _bytes_of_rows(width: int, height: int, bits: int, passes: tuple[tuple[int, int, int, int], ...]) -> int:
    """How many bytes all rows have, each with its filter's number; a pass begins at (left, top) and goes in steps."""
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _inflated(chunks: list[memoryview], needed: int) -> int:
    """How many bytes come out of the chunks; not counted further than `needed`."""
    inflating, total = zlib.decompressobj(), 0
    for chunk in chunks:
        for at in range(8, len(chunk) - 4, _PIECE):
            rest = bytes(chunk[at : min(at + _PIECE, len(chunk) - 4)])
            while rest and total < needed:
                total += len(inflating.decompress(rest, 64 * _PIECE))
                rest = inflating.unconsumed_tail
    return total


def _profile_of(chunk: bytes, remarks: list[str]) -> bytes | None:
    """The colour profile: a name, a zero, the compression method zero, the compressed profile."""
    inflating = zlib.decompressobj()
    try:
        profile = inflating.decompress(chunk[chunk.index(0) + 2 :], _MOST_PROFILE)
    except (ValueError, zlib.error):
        remarks.append("its colour profile is damaged; taken as sRGB")
        return None
    if inflating.unconsumed_tail:
        remarks.append(f"its colour profile has more than {_MOST_PROFILE:,} bytes; taken as sRGB")
        return None
    return profile


def _colours_not_used(asides: dict[bytes, memoryview]) -> list[str]:
    """What a file says of its colours in other ways than by a profile; it is not followed, but said."""
    if b"cICP" in asides:
        primaries, transfer = [*asides[b"cICP"][:2], 0, 0][:2]
        same = (primaries, transfer) == (1, 13)  # sRGB's numbers in ITU-T H.273
        return [] if same else [f"its colours are those of H.273 {primaries}/{transfer}; taken as sRGB"]
    if b"gAMA" in asides and not asides.keys() & {b"iCCP", b"sRGB"}:
        gamma = int.from_bytes(asides[b"gAMA"][:4], "big") / 100_000
        if gamma and abs(gamma * 2.2 - 1) > _GAMMA_ERROR:
            return [f"its gamma is {gamma:.3g}; taken as sRGB"]
    return []


def _correct_transparent_colour(image: PngImageFile, depth: int, colour: int) -> None:
    """The colour that is transparent is written in the file's depth, but Pillow compares it with 8 bits."""
    transparent = image.info.get("transparency")
    if colour == 0 and depth in (2, 4) and isinstance(transparent, int):
        image.info["transparency"] = min(255, transparent * 255 // (2**depth - 1))
    elif colour == 2 and depth == 16 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
