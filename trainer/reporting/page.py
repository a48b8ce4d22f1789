"""A run as one HTML file: opens from a disk, asks for nothing from the network, and stays below 20 MB."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from trainer import __version__
from trainer.core.files import printable
from trainer.core.pages import script_source, write_page
from trainer.core.progress import Phases
from trainer.core.redacting import redacted, redacted_text
from trainer.reporting.curves import Drawing, drawings_of, ends_of, numbers_of
from trainer.reporting.dataset import health_of
from trainer.reporting.pictures import Embedded, embed, open_picture
from trainer.reporting.programs import programs_for
from trainer.reporting.record import RunRecord
from trainer.reporting.settings_shown import settings_shown
from trainer.reporting.timeline import Film, timeline_of
from trainer.reporting.usage import result_of
from trainer.reporting.verdicts import drawing_of, measured, pictures_of, verdict_of

_HERE: Final = Path(__file__).parent
_TEMPLATE: Final = _HERE / "page.html.jinja"
_GRID_LETTERS: Final = 2_400_000  # of all sheets together
_GRIDS: Final = 8
_GRID_LONGEST: Final = 1600  # pixels
_WARNINGS: Final = 100
_SCORES: Final = ("likeness", "gap_closed", "diversity", "copied", "drift", "adherence", "kid")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    name: str
    picture: Embedded


def write_report(record: RunRecord, path: Path, progress: Phases, *, examined: bool = True) -> None:
    """Write the page of a run; it is whole, or what was there before is untouched.

    Args:
        record: of the run, as far as it has come.
        path: the page.
        progress: told how far the long parts are.
        examined: whether the data are looked at again, for what the doctor finds in them.
    """
    write_page(path, _TEMPLATE, {**_values(record), "data": health_of(record, progress, examined=examined)})


def _values(record: RunRecord) -> dict[str, Any]:  # Any: a template takes anything
    verdict = verdict_of(record.evaluation)
    own = None if verdict is None else verdict.own
    drawings = drawings_of(record.events)
    fixed = None if own is None else drawing_of(own)
    if fixed is not None:
        drawings.insert(1 if drawings else 0, fixed)
    timeline = timeline_of(record)
    recipe = record.recipe
    recommended = None if own is None else own.recommendation
    result = (
        None if recipe is None else result_of(recipe, record.folder.result, recommended.strength if recommended else 1)
    )
    library, script = _read("uplot/uplot.min.js"), _read("page.js")
    return {
        "name": record.folder.name,
        "version": __version__,
        "record": record,
        "warnings": record.warnings[:_WARNINGS],
        "tiles": _tiles(record),
        "verdict": verdict,
        "own": own,
        "scores": [] if own is None else measured(own, _SCORES),
        "found": {} if own is None else pictures_of(own, record.folder.root),
        "drawings": drawings,
        "curves": [drawing.as_json() for drawing in drawings],
        "mark": None if recommended is None else recommended.step,
        "most_each": _most_each(drawings),
        "timeline": timeline,
        "films": [_frames(film) for film in timeline.films],
        "grids": _sheets(record),
        "settings": [] if recipe is None else settings_shown(recipe),
        "result": result,
        "programs": [] if result is None else programs_for(result),
        "environment": _flat(redacted(record.environment)),
        # our own files and no value in them, so that nothing of them needs to be escaped
        "style": Markup(_read("uplot/uplot.min.css") + _read("page.css")),  # noqa: S704
        "scripts": [Markup(library), Markup(script)],  # noqa: S704
        "sources": " ".join(f"'{script_source(text)}'" for text in (library, script)),
    }


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _tiles(record: RunRecord) -> list[tuple[str, str]]:
    """The numbers that a person looks for first, each with what it is."""
    steps = record.of_kind("step")
    tiles: list[tuple[str, str]] = []
    asked = f" of {record.recipe.steps:,}" if record.recipe is not None and not record.finished else ""
    tiles.append((f"{record.step:,}{asked}", "steps"))
    if not steps:
        return tiles
    _, seconds = numbers_of(steps, "seconds")
    _, loss = numbers_of(steps, "loss")
    _, peak = numbers_of(steps, "peak_bytes")
    if (seconds == seconds).any():
        known = seconds[seconds == seconds]
        tiles.append((str(timedelta(seconds=round(known.sum()))), "in steps, h:mm:ss"))
    if (loss == loss).any():
        tiles.append((f"{ends_of(loss)[1]:.4g}", "training loss, last steps"))
    held_out = record.of_kind("held_out")
    at, values = numbers_of(held_out, "loss")
    if (values == values).any():
        best = int((values == min(values[values == values])).argmax())
        tiles.append((f"{values[best]:.4g}", f"lowest held-out loss, step {at[best]:.0f}"))
    if (peak == peak).any():
        tiles.append((f"{max(peak[peak == peak]) / 2**30:.2f} GiB", "most memory"))
    return tiles


def _most_each(drawings: Sequence[Drawing]) -> int:
    return max((curve.each for drawing in drawings for curve in drawing.curves), default=1)


def _frames(film: Film) -> dict[str, object]:
    """What the script needs to show each picture of a prompt."""
    return {"steps": film.steps, "pictures": [frame.content for frame in film.frames]}


def _sheets(record: RunRecord) -> list[_Sheet]:
    """The newest sheets of `trainer grid`."""
    files = sorted(record.grids, key=lambda file: file.stat().st_mtime, reverse=True)[:_GRIDS]
    share = _GRID_LETTERS // max(len(files), 1)
    opened = [(file, open_picture(file)) for file in files]
    return [
        _Sheet(name=printable(file.stem), picture=embed(picture, _GRID_LONGEST, share))
        for file, picture in opened
        if picture is not None
    ]


def _flat(content: object, under: str = "") -> list[tuple[str, str]]:
    """The values of a mapping by dotted keys."""
    if not isinstance(content, dict):
        return [(under, "" if content is None else str(content))]
    keys = {key: redacted_text(str(key)) for key in content}
    return [pair for key, value in content.items() for pair in _flat(value, f"{under}.{keys[key]}".removeprefix("."))]
