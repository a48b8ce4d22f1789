"""A grid from its axes to its files: missing cells are drawn, then sheets and the page are put together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.core.progress import Phases
from trainer.gridding.axes import Axis, Cell, Sheet, sheets_of, with_base
from trainer.gridding.cells import Cells
from trainer.gridding.page import ShownGrid, ShownPicture, ShownRow, ShownSheet, write_grid_page
from trainer.gridding.sheet import Row, write_sheet

_REAL = "training pictures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is asked for."""

    title: str
    axes: Sequence[Axis]  # columns, rows, and what differs from sheet to sheet
    usual: Cell  # what no axis says
    with_base: bool  # pictures without the adapter too

    def sheets(self) -> list[Sheet]:
        """The sheets.

        Raises:
            RecipeError: there are not two or three axes.
        """
        return sheets_of(with_base(self.axes) if self.with_base else self.axes, self.usual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The files of a grid."""

    page: Path
    sheets: tuple[Path, ...]
    drawn: int  # pictures that were missing
    kept: int  # that were there from before


def make(grid: Grid, cells: Cells, out: Path, references: Sequence[Image.Image], progress: Phases) -> Made:
    """Draw what is missing and write the sheets and the page; what was drawn before a stop is not drawn again.

    Args:
        grid: what is asked for.
        cells: where single pictures lie.
        out: the folder for sheets and page.
        references: training pictures, for a last row; none: no such row.
        progress: told after each few pictures.
    """
    sheets = grid.sheets()
    wanted = [cell for sheet in sheets for row in sheet.cells for cell in row]
    missing = cells.missing(wanted)
    done = 0

    def tell(new: int) -> None:
        nonlocal done
        done += new
        progress("drawing", done, len(missing))

    cells.draw(missing, tell)
    stem = "-".join(axis.kind for axis in grid.axes)
    names = [f"{stem}.png" if len(sheets) == 1 else f"{stem}-{place}.png" for place in range(1, len(sheets) + 1)]
    size = _size(cells, wanted)
    for sheet, name in zip(sheets, names, strict=True):
        write_sheet(out / name, sheet.label, sheet.columns, _rows(sheet, cells, references), size)
    page = out / f"{stem}.html"
    shown = ShownGrid(
        title=grid.title,
        axes=_in_words(grid.axes),
        count=len(wanted) + len(sheets) * len(references),
        width=size[0],
        sheets=(_shown(sheet, cells, references) for sheet in sheets),
    )
    write_grid_page(page, shown)
    different = len({cells.path(cell) for cell in wanted})
    return Made(
        page=page, sheets=tuple(out / name for name in names), drawn=len(missing), kept=different - len(missing)
    )


def _size(cells: Cells, wanted: Sequence[Cell]) -> tuple[int, int]:
    """Width and height into which each of the pictures fits."""
    sizes = {cells.picture_size(cell) for cell in wanted}
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _rows(sheet: Sheet, cells: Cells, references: Sequence[Image.Image]) -> list[Row]:
    def pictures(row: Sequence[Cell]) -> list[Image.Image]:
        return [cells.picture(cell) for cell in row]

    rows = [
        Row(label=label, pictures=lambda row=row: pictures(row))
        for label, row in zip(sheet.rows, sheet.cells, strict=True)
    ]
    real = [Row(label=_REAL, pictures=lambda: list(references))] if references else []
    return [*rows, *real]


def _shown(sheet: Sheet, cells: Cells, references: Sequence[Image.Image]) -> ShownSheet:
    def pictures(label: str, row: Sequence[Cell]) -> Iterator[ShownPicture]:
        for column, cell in zip(sheet.columns, row, strict=True):
            words = ", ".join(part for part in (label, column, sheet.label) if part)
            yield ShownPicture(label=words, facts=cells.facts(cell), picture=cells.picture(cell))

    def rows() -> Iterator[ShownRow]:
        for label, row in zip(sheet.rows, sheet.cells, strict=True):
            yield ShownRow(label=label, pictures=pictures(label, row))
        if references:
            real = references[: len(sheet.columns)]
            shown = [ShownPicture(label="a training picture", facts="", picture=picture) for picture in real]
            yield ShownRow(label=_REAL, pictures=shown, reference=True)

    return ShownSheet(label=sheet.label, columns=sheet.columns, rows=rows())


def _in_words(axes: Sequence[Axis]) -> str:
    places = ("across", "down", "from sheet to sheet")
    return ", ".join(f"{axis.title} {place}" for axis, place in zip(axes, places, strict=False)).capitalize()
