"""trainer weights inspect FILE: what a model file is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from trainer.cli.weights.asking import JsonFile
from trainer.cli.weights.showing import rows, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.weights.inspecting import FileReport


def inspect(
    file: Annotated[Path, Argument(help="a .safetensors file, or a folder in the diffusers layout")],
    json_file: JsonFile = None,
) -> None:
    """Say what a model file is: family, kind, rank, sizes, metadata, and layers that look wrong.

    Example: trainer weights inspect runs/blob/blob.safetensors
    """
    from rich.console import Console

    from trainer.weights.inspecting import describe

    report = describe(file)
    console = Console()
    for table in _tables(report):
        console.print(table)
    write_json(json_file, report.as_json())


def _tables(report: "FileReport") -> "list[Table]":
    """What is shown: the file, its parts, its most changed and its suspicious layers, its metadata."""
    tables = [_facts(report), _parts(report)]
    if report.layers:
        tables.append(_layers(report))
    if report.metadata:
        tables.append(rows("metadata", ("key", "value"), [[k, v[:300]] for k, v in sorted(report.metadata.items())]))
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
    return rows(Path(report.path).name, ("", ""), [[key, value] for key, value in facts.items() if value])


def _parts(report: "FileReport") -> "Table":
    lines = [
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
    return rows("parts", ("part", "tensors", "parameters", "dtypes", "rank", "alpha"), lines)


def _layers(report: "FileReport", most: int = 5) -> "Table":
    """The suspicious layers, and those that change most a weight."""
    suspicious = report.suspicious[:20]
    others = [layer for layer in report.layers if layer.suspicion is None]
    loudest = sorted(others, key=lambda layer: layer.rms or 0.0, reverse=True)[:most]
    lines = [
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
    return rows(title, ("layer", "rank", "norm", "rms", "suspicion"), lines)
