"""A PNG written from top to bottom, so that a sheet of any height needs the memory of one of its rows."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.core.files import replacing

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_LEVEL: Final = 6  # zlib's usual
_UP: Final = 2  # the filter: each line as its difference from the one above


def write_striped(path: Path, width: int, height: int, stripes: Iterable[Image.Image]) -> None:
    """Write one PNG out of stripes that lie below one another; whole or not at all.

    Args:
        path: the file.
        width: pixels, of each stripe.
        height: pixels, of all stripes together.
        stripes: RGB.

    Source: W3C, Portable Network Graphics, third edition, sections 5 and 9.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_SIGNATURE)
        _write(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))  # 8 bits, RGB
        packer = zlib.compressobj(_LEVEL)
        for lines in _filtered(stripes, width):
            _write(file, b"IDAT", packer.compress(lines))
        _write(file, b"IDAT", packer.flush())
        _write(file, b"IEND", b"")


def _filtered(stripes: Iterable[Image.Image], width: int) -> Iterator[bytes]:
    above: NDArray[np.uint8] = np.zeros((1, width * 3), dtype=np.uint8)
    for stripe in stripes:
        lines = np.asarray(stripe, dtype=np.uint8).reshape(stripe.height, -1)
        with_filter = np.empty((stripe.height, 1 + width * 3), dtype=np.uint8)
        with_filter[:, 0] = _UP
        with_filter[:, 1:] = lines - np.concatenate([above, lines[:-1]])  # modulo 256, as the format has it
        above = lines[-1:].copy()
        yield with_filter.tobytes()


def _write(file: BinaryIO, kind: bytes, content: bytes) -> None:
    if content or kind == b"IEND":
        checksum = zlib.crc32(kind + content)
        file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum))
