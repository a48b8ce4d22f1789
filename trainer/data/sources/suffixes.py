"""What pictures' names end with."""

from typing import Final

PICTURE_SUFFIXES: Final = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
)  # fmt: skip
OTHER_PICTURE_SUFFIXES: Final = (
    ".heic", ".heif", ".jxl", ".jp2", ".tga", ".ico", ".exr", ".hdr", ".dng", ".ppm", ".pgm",
)  # fmt: skip
