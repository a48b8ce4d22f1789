"""What the verbs of `trainer weights` show, and what they write for programs."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.core.errors import WeightsError

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.converting.done import Done
    from trainer.core.progress import Phases
    from trainer.weights.fitting import FitReport

_WORST = 5
_NOTHING = 1e-6  # what float32 rounds


def show(done: "Done", json_file: Path | None) -> None:
    """Tell what was made: the file, how near it comes, and what was lost."""
    from rich.console import Console

    from trainer.core.files import printable

    console = Console()
    facts = [[name.replace("_", " "), _said(value)] for name, value in done.facts.items()]
    console.print(rows(done.path.name, ("", ""), [*facts, ["size", f"{done.bytes:,} bytes"]]))
    if done.fit is not None and done.fit.layers:
        console.print(_errors(done.fit))
        if done.fit.relative_error > _NOTHING:
            console.print(_worst(done.fit))
    for note in done.notes:
        console.print(printable(note), markup=False, highlight=False)
    write_json(json_file, done.as_json())


@contextmanager
def working(out: Path) -> Generator["Phases", None, None]:
    """Show how far the work is that makes `out`; what the disk refuses becomes a message.

    Raises:
        WeightsError: something cannot be read or written.
    """
    from trainer.core.progress import phases

    try:
        with phases() as progress:
            yield progress
    except OSError as error:
        raise WeightsError(
            f"The result could not be written: {error.strerror or error}.",
            where=str(error.filename or out),
            mend="Make room, or name a place that you may write to. What was there before is unchanged.",
        ) from error


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write a whole report, where one is wanted."""
    import json

    from trainer.core.files import write_atomically

    if path is not None:
        write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        print(f"The whole report is in {path}.")


def rows(title: str, heads: tuple[str, ...], lines: Sequence[Sequence[str]]) -> "Table":
    """A table whose texts come from a file: nothing in them is markup or paints the terminal."""
    from rich.table import Table
    from rich.text import Text

    from trainer.core.files import printable

    table = Table(
        *heads, title=Text(printable(title)), title_justify="left", show_header=any(heads), header_style="bold"
    )
    for line in lines:
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in line))
    return table


def _errors(fit: "FitReport") -> "Table":
    lines = [[part, _share(error)] for part, error in fit.parts.items()]
    return rows("relative error", ("part", "error"), [*lines, ["all", _share(fit.relative_error)]])


def _worst(fit: "FitReport") -> "Table":
    worst = fit.worst(_WORST)
    known = any(one.rank_before is not None for one in worst)
    lines = [
        [one.layer, *([str(one.rank_before or "")] if known else []), str(one.rank), _share(one.relative_error)]
        for one in worst
    ]
    heads = ("layer", *(["rank before"] if known else []), "rank", "error")
    return rows(f"the {len(lines)} layers that lose most", heads, lines)


def _share(error: float) -> str:
    return f"{error:.2%}" if error >= 0.0001 else f"{error:.1e}"


def _said(value: "str | int | float | list[str]") -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
