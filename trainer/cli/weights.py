"""trainer weights: what model files are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.weights.inspecting import FileReport

app = Typer(no_args_is_help=True, help="Look into model files.")


@app.callback()
def weights() -> None:
    """Look into model files."""


@app.command("inspect")
def inspect(
    file: Annotated[Path, Argument(help="a .safetensors file, or a folder in the diffusers layout")],
    json_file: Annotated[
        Path | None, Option("--json", metavar="FILE", help="write the whole report here as well")
    ] = None,
) -> None:
    """Say what a model file is: family, kind, rank, sizes, metadata, and layers that look wrong.

    Example: trainer weights inspect runs/blob/blob.safetensors
    """
    import json

    from rich.console import Console

    from trainer.core.files import write_atomically
    from trainer.weights.inspecting import describe

    report = describe(file)
    console = Console()
    for table in _tables(report):
        console.print(table)
    if json_file is not None:
        write_atomically(json_file, json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n")
        console.print(f"The whole report is in {json_file}.", markup=False)


def _tables(report: "FileReport") -> "list[Table]":
    """What is shown: the file, its parts, its most changed and its suspicious layers, its metadata."""
    tables = [_facts(report), _parts(report)]
    if report.layers:
        tables.append(_layers(report))
    if report.metadata:
        tables.append(_rows("metadata", ("key", "value"), [[k, v[:300]] for k, v in sorted(report.metadata.items())]))
    return tables


def _facts(report: "FileReport") -> "Table":
    adapted = f"{len(report.layers)}, {len(report.suspicious)} of them suspicious" if report.layers else None
    facts = {
        "kind": report.kind,
        "family": report.family,
        "prediction": report.prediction,
        "size": f"{report.bytes:,} bytes",
        "parameters": f"{report.parameters:,}",
        "adapted layers": adapted,
        "trigger": report.trigger,
        "base": report.base,
    }
    return _rows(Path(report.path).name, ("", ""), [[key, value] for key, value in facts.items() if value])


def _parts(report: "FileReport") -> "Table":
    rows = [
        [
            part.name,
            f"{part.tensors:,}",
            f"{part.parameters:,}",
            ", ".join(part.dtypes),
            ", ".join(map(str, part.ranks)),
            ", ".join(f"{alpha:g}" for alpha in part.alphas),
        ]
        for part in report.parts
    ]
    return _rows("parts", ("part", "tensors", "parameters", "dtypes", "rank", "alpha"), rows)


def _layers(report: "FileReport", most: int = 5) -> "Table":
    """The suspicious layers, and those that change most a weight."""
    suspicious = report.suspicious[:20]
    others = [layer for layer in report.layers if layer.suspicion is None]
    loudest = sorted(others, key=lambda layer: layer.rms or 0.0, reverse=True)[:most]
    rows = [
        [
            layer.name,
            "" if layer.rank is None else str(layer.rank),
            "" if layer.norm is None else f"{layer.norm:.4g}",
            "" if layer.rms is None else f"{layer.rms:.4g}",
            layer.suspicion or "",
        ]
        for layer in [*suspicious, *loudest]
    ]
    title = f"layers: suspicious ({len(report.suspicious)}), then the {len(loudest)} that change most a weight"
    return _rows(title, ("layer", "rank", "norm", "rms", "suspicion"), rows)


def _rows(title: str, heads: tuple[str, ...], rows: "list[list[str]]") -> "Table":
    """A table whose texts come from a file: nothing in them is markup or paints the terminal."""
    from rich.table import Table
    from rich.text import Text

    from trainer.core.files import printable

    table = Table(
        *heads, title=Text(printable(title)), title_justify="left", show_header=any(heads), header_style="bold"
    )
    for row in rows:
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    return table
