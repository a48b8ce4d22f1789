"""TIFF files: what their directory claims is looked at before Pillow believes it."""

import io
import struct
from dataclasses import dataclass
from typing import Final

from PIL.TiffImagePlugin import TiffImageFile

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 262, 277, 278, 284
_STRIPS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 273, 322, 323, 324
_OTHER_DIRECTORIES: Final = (34665, 34853, 40965)  # EXIF, GPS, interoperability: Pillow reads them too
_BYTES: Final = frozenset((1, 2, 6, 7))  # types of one byte
_FORMATS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}  # the types of which one number is read here
_MOST_NUMBERS: Final = 1_000_000  # in one tag; Pillow makes an object of each
_MOST_PIECES: Final = 100_000  # strips or tiles


@dataclass(frozen=True, slots=True)
class OpenedTiff:
    """A TIFF that was opened but not decoded."""

    image: TiffImageFile
    tile: tuple[int, int]  # width and height of its tiles, or (0, 0)

    @property
    def several(self) -> bool:
        """Whether it has more than one page."""
        return bool(self.image.tag_v2.next)

    @property
    def inverted(self) -> bool:
        """Whether 0 is white in greys of more than 8 bits, which Pillow does not turn round."""
        return self.image.mode.startswith(("I", "F")) and self.image.tag_v2.get(_PHOTOMETRIC) == 0

    @property
    def white(self) -> int | None:
        """The largest value of greys of 9 to 16 bits."""
        bits = self.image.tag_v2.get(_BITS, (16,))
        return 2 ** int(bits[0]) - 1 if self.image.mode.startswith("I;16") else None


def open_tiff(content: bytes) -> OpenedTiff:
    """Read the first directory.

    Raises:
        SyntaxError: the directory claims what cannot be, or what would take hours.
        ValueError, struct.error: it is cut short.
    """
    directory = _Directory(content)
    first = directory.entries(directory.first)
    for tag in _OTHER_DIRECTORIES:
        if tag in first:
            directory.entries(directory.number(first, tag, 0))
    tile = (directory.number(first, _TILE_WIDTH, 0), directory.number(first, _TILE_HEIGHT, 0))
    _check_pieces(directory, first, tile)
    return OpenedTiff(TiffImageFile(io.BytesIO(content)), tile)


_Entries = dict[int, tuple[int, int, int]]  # tag: type, count, where the value or its place stands


class _Directory:
    """Reads directories: TIFF 6.0, section 2, and BigTIFF, in which all counts and places have 8 bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._order = "<" if content[:2] == b"II" else ">"
        self._big = struct.unpack_from(self._order + "H", content, 2)[0] == 43
        self.first: int = self._unpack("Q" if self._big else "I", 8 if self._big else 4)

    def entries(self, start: int) -> _Entries:
        """The entries of a directory.

        Raises:
            SyntaxError: a tag claims to hold more numbers than any picture needs.
        """
        at = start + (8 if self._big else 2)
        count = self._unpack("Q" if self._big else "H", start)
        if count > 65_536:  # no more tags exist
            raise SyntaxError(f"it claims to have {count:,} tags")
        found: _Entries = {}
        for place in range(at, at + count * (20 if self._big else 12), 20 if self._big else 12):
            tag, kind = self._unpack("H", place), self._unpack("H", place + 2)
            number = self._unpack("Q" if self._big else "I", place + 4)
            if kind not in _BYTES and number > _MOST_NUMBERS:
                raise SyntaxError(f"its tag {tag} claims to hold {number:,} numbers")
            found.setdefault(tag, (kind, number, place + (12 if self._big else 8)))
        return found

    def number(self, entries: _Entries, tag: int, default: int) -> int:
        """The only number of a tag, or `default` where there is no such tag."""
        kind, count, place = entries.get(tag, (0, 0, 0))
        return self._unpack(_FORMATS[kind], place) if count == 1 and kind in _FORMATS else default

    def _unpack(self, kind: str, at: int) -> int:
        return struct.unpack_from(self._order + kind, self._content, at)[0]


def _check_pieces(directory: _Directory, entries: _Entries, tile: tuple[int, int]) -> None:
    """As many strips or tiles as the picture needs: what is missing would be black, and nobody would say so."""
    width, height = directory.number(entries, _WIDTH, 0), directory.number(entries, _HEIGHT, 0)
    if _TILES in entries and all(tile):
        needed, given = -(-width // tile[0]) * -(-height // tile[1]), entries[_TILES][1]
    else:
        rows = directory.number(entries, _ROWS, height) or height
        needed, given = -(-height // max(1, rows)), entries.get(_STRIPS, (0, 0, 0))[1]
    if directory.number(entries, _PLANES, 1) == 2:
        needed *= directory.number(entries, _SAMPLES, 1)
    if given > _MOST_PIECES:
        raise SyntaxError(f"it claims to have {given:,} strips")
    if given < needed:
        raise SyntaxError(f"it has {given:,} strips or tiles and needs {needed:,}")
