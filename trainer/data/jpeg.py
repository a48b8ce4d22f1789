"""JPEG files: only the segments that make the picture are kept, and pixels that were never in the file are noticed."""

import io
import re
from typing import Final

from PIL.JpegImagePlugin import JpegImageFile

_MOST_SEGMENTS: Final = 10_000
_MOST_PROFILE_PARTS: Final = 255  # as many as they can be numbered
_SCAN, _END = 0xDA, 0xD9
_ALONE: Final = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))  # markers without a segment
_APPLICATIONS: Final = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))  # APP1 .. APP15 but Adobe's, and comments
_EXIF, _XMP, _PROFILE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what no entropy-coded data can hold
_MIDDLE: Final = frozenset((127, 128))  # what the decoder fills up with
_ANYTHING: Final = bytes(range(1, 251)) * 16


class OpenedJpeg:
    """A JPEG that was opened but not decoded.

    Attributes:
        image: it may be told to decode itself at a fraction of its size.
        ended: whether the file holds an end mark.
    """

    def __init__(self, content: bytes, most_pixels: int) -> None:
        """Read the headers.

        Raises:
            SyntaxError: there is no picture in it, or it would take hours to decode.
        """
        self._content, self._scan = _without_ballast(content)
        # Not by Image.open, which makes of a phone's JPEG with a depth map behind it a picture of two frames.
        self.image = JpegImageFile(io.BytesIO(self._content))
        self.ended = self._content.rfind(b"\xff\xd9", self._scan) >= 0
        self._check_passes(most_pixels)

    def reduce(self, part: int) -> None:
        """Let it be decoded at 1/part of its size, rounded up; its bytes are all read nevertheless."""
        size = self.image.size
        self.image.draft(self.image.mode, (max(1, size[0] // part), max(1, size[1] // part)))

    def check_end(self) -> None:
        """Make sure that the last pixels of the loaded picture are those of the file.

        Where the data of a JPEG end too early, as in a download that was cut and closed with an end mark, the decoder
        fills up with grey and says nothing. So, where the last pixel has that grey, the picture is decoded once more
        with more data before the end mark: if all pixels were there before, they change nothing.

        Raises:
            SyntaxError: the data end too early.
        """
        if not _ends_in_grey(self.image):
            return
        end, small = self._content.find(b"\xff\xd9", self._scan), _small(self._content)
        if end < 0 or not _ends_in_grey(small):
            return
        if small.tobytes() != _small(self._content[:end] + _ANYTHING + self._content[end:]).tobytes():
            raise SyntaxError("its pixels end before its last row")

    def _check_passes(self, most_pixels: int) -> None:
        """A progressive JPEG visits all its pixels in each of its passes, of which a kilobyte can hold a hundred."""
        most = 100 * most_pixels // max(1, self.image.width * self.image.height)
        if self._content.count(b"\xff\xda", self._scan) > most and _passes(self._content, self._scan) > most:
            raise SyntaxError(f"it has more than {most} passes over its pixels")


def _small(content: bytes) -> JpegImageFile:
    opened = JpegImageFile(io.BytesIO(content))
    opened.draft(opened.mode, (max(1, opened.width // 8), max(1, opened.height // 8)))
    opened.load()
    return opened


def _ends_in_grey(image: JpegImageFile) -> bool:
    corner = image.getpixel((image.width - 1, image.height - 1))
    return _MIDDLE.issuperset(corner if isinstance(corner, tuple) else (corner,))


def _without_ballast(content: bytes) -> tuple[bytes, int]:
    """The file without what is not needed for the picture, and where its first scan begins."""
    kept, at, seen = [content[:2]], 2, dict[bytes, int]()
    for _ in range(_MOST_SEGMENTS):
        at = content.find(b"\xff", at)
        if at < 0 or at + 4 > len(content):
            raise SyntaxError("it ends before its pixels begin")
        marker = content[at + 1]
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return b"".join([*kept, content[at:]]), sum(map(len, kept))
        if marker not in _APPLICATIONS or _is_wanted(content[at + 4 : end], seen):
            kept.append(content[at:end])
        at = end
    raise SyntaxError("it has too many segments before its pixels")


def _is_wanted(body: bytes, seen: dict[bytes, int]) -> bool:
    for start, most in ((_EXIF, 1), (_XMP, 1), (_PROFILE, _MOST_PROFILE_PARTS)):
        if body.startswith(start):
            seen[start] = seen.get(start, 0) + 1
            return seen[start] <= most
    return False


def _passes(content: bytes, at: int) -> int:
    """How many scans there are before the end mark."""
    count = 0
    while (found := _MARKER.search(content, at)) is not None:
        marker, at = content[found.start() + 1], found.end()
        if marker == _END:
            break
        count += marker == _SCAN
        at += int.from_bytes(content[at : at + 2], "big")
    return count
