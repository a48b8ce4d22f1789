"""All sheets of a grid as one HTML file: opens from a disk, needs no network."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup
from PIL import Image

from trainer import __version__
from trainer.core.files import printable
from trainer.core.pages import script_source, write_page

_TEMPLATE: Final = Path(__file__).with_name("page.html.jinja")
_SCRIPT: Final = Path(__file__).with_name("page.js")
_BYTES: Final = 15_000_000  # of all pictures together, about
_BYTES_A_PIXEL: Final = 0.3  # of WebP at our quality, with base64, where a picture is full of detail
_QUALITY: Final = 85
_LONGEST, _SHORTEST = 1024, 96  # pixels of the longer side
_EXACT: Final = 128  # pixels: such small pictures are kept as they are, bit for bit
_USUAL: Final = (96, 320)  # pixels: how wide pictures are shown at first


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPicture:
    """A picture in the page."""

    label: str
    facts: str  # how it was drawn
    picture: Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """A row of a sheet in the page."""

    label: str
    pictures: Iterable[ShownPicture]  # gone through once
    reference: bool = False  # real pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSheet:
    """A sheet in the page."""

    label: str
    columns: Sequence[str]
    rows: Iterable[ShownRow]  # gone through once


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGrid:
    """What the page shows."""

    title: str
    axes: str  # what varies, in words
    count: int  # of pictures
    width: int  # pixels, of a picture
    sheets: Iterable[ShownSheet]  # gone through once


def write_grid_page(path: Path, grid: ShownGrid) -> None:
    """Write the page; one row of pictures is in memory at a time, and where there are many, they are made smaller."""
    longest = int(min(max((_BYTES / max(grid.count, 1) / _BYTES_A_PIXEL) ** 0.5, _SHORTEST), _LONGEST))
    script = _SCRIPT.read_text(encoding="utf-8")
    values = {
        "title": grid.title,
        "axes": grid.axes,
        "cell": min(max(grid.width, _USUAL[0]), _USUAL[1]),
        "version": __version__,
        "script": Markup(script),  # noqa: S704 - our own file, and no value goes into it
        "script_source": script_source(script),
        "sheets": (_sheet(sheet, longest) for sheet in grid.sheets),
    }
    write_page(path, _TEMPLATE, values)


def _sheet(sheet: ShownSheet, longest: int) -> dict[str, object]:
    return {"label": sheet.label, "columns": sheet.columns, "rows": (_row(row, longest) for row in sheet.rows)}


def _row(row: ShownRow, longest: int) -> dict[str, object]:
    return {"label": row.label, "reference": row.reference, "cells": _cells(row.pictures, longest)}


def _cells(pictures: Iterable[ShownPicture], longest: int) -> Iterator[dict[str, object]]:
    for one in pictures:
        small = one.picture.copy()
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=_QUALITY, lossless=max(small.size) <= _EXACT)
        content = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
        yield {
            "label": one.label,
            "facts": Markup("\n").join(map(printable, one.facts.split("\n"))),  # lines stay lines; the rest is escaped
            "content": content,
            "width": small.width,
            "height": small.height,
        }
