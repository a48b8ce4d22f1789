"""One sheet as one PNG: words above the columns and before the rows, pictures between them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from trainer.gridding.striped_png import write_striped
from trainer.sampling.labels import Lettering, letters_for

_LEAST_CELL: Final = 128  # pixels: smaller pictures are enlarged by a whole factor, so that the eye can judge them
_LEAST_SIDE: Final = 160  # pixels: words before a row may be so wide, however small the pictures are
_HEAD_LINES: Final = 6
_PAPER: Final = "white"
_SOFT: Final = "#555555"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a sheet."""

    label: str
    pictures: Callable[[], Sequence[Image.Image]]  # at most one a column; in memory while the row is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything on a sheet lies, in pixels."""

    cell: tuple[int, int]
    letters: Lettering
    margin: int
    side: int
    columns: int

    @property
    def width(self) -> int:
        """Of the sheet."""
        return self.side + self.columns * (self.cell[0] + self.margin)

    @property
    def row_height(self) -> int:
        """Of a row of pictures with the space below it."""
        return self.cell[1] + self.margin


def write_sheet(path: Path, title: str, columns: Sequence[str], rows: Sequence[Row], cell: tuple[int, int]) -> None:
    """Write a sheet; of the pictures one row is in memory at a time.

    Args:
        path: ends in .png.
        title: stands on top; "": nothing does.
        columns: words above the columns.
        rows: from top to bottom.
        cell: width and height of the pictures in pixels; smaller and larger ones are fitted into it.
    """
    layout = _layout(columns, rows, cell)
    head = _head(layout, title, columns)
    height = head.height + len(rows) * layout.row_height
    write_striped(path, layout.width, height, _stripes(layout, head, rows))


def fitted(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """A picture as large as fits into a cell, its shape kept."""
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if size == picture.size:
        return picture
    smoothing = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    return picture.resize(size, smoothing)


def _layout(columns: Sequence[str], rows: Sequence[Row], cell: tuple[int, int]) -> Layout:
    factor = max(1, -(-_LEAST_CELL // max(cell)))
    width, height = cell[0] * factor, cell[1] * factor
    letters = Lettering(letters_for(width))
    margin = max(6, letters.size // 2)
    room = max(width, _LEAST_SIDE)
    lines = [line for row in rows for line in letters.wrapped(row.label, room, height // letters.pitch)]
    side = max(map(letters.width, lines), default=0) + 2 * margin
    return Layout(cell=(width, height), letters=letters, margin=margin, side=side, columns=len(columns))


def _head(layout: Layout, title: str, columns: Sequence[str]) -> Image.Image:
    letters, margin = layout.letters, layout.margin
    top = letters.wrapped(title, layout.width - 2 * margin, _HEAD_LINES) if title else []
    heads = [letters.wrapped(label, layout.cell[0], _HEAD_LINES) for label in columns]
    below = len(top) * letters.pitch + (2 * margin if top else margin)
    height = below + max(map(len, heads), default=0) * letters.pitch + margin
    image = Image.new("RGB", (layout.width, height), _PAPER)
    pen = ImageDraw.Draw(image)
    letters.draw(pen, (margin, margin), top, _SOFT)
    for place, head in enumerate(heads):
        letters.draw(pen, (layout.side + place * (layout.cell[0] + margin), below), head)
    return image


def _stripes(layout: Layout, head: Image.Image, rows: Sequence[Row]) -> Iterator[Image.Image]:
    yield head
    width, height = layout.cell
    for row in rows:
        stripe = Image.new("RGB", (layout.width, layout.row_height), _PAPER)
        lines = layout.letters.wrapped(row.label, layout.side - 2 * layout.margin, height // layout.letters.pitch)
        top = max(0, (height - len(lines) * layout.letters.pitch) // 2)
        layout.letters.draw(ImageDraw.Draw(stripe), (layout.margin, top), lines)
        for place, picture in enumerate(row.pictures()[: layout.columns]):
            shown = fitted(picture, layout.cell)
            left = layout.side + place * (width + layout.margin)
            stripe.paste(shown, (left + (width - shown.width) // 2, (height - shown.height) // 2))
        yield stripe
