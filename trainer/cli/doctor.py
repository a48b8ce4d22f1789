"""trainer doctor RECIPE|FOLDER: what is wrong with a dataset, before hours are spent on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trainer.data.batches import DataSettings
    from trainer.data.health.examining import Report
    from trainer.data.health.findings import Finding, ModelFacts

_SHOWN = 5  # files named a finding; the JSON names all


def command(
    target: Annotated[Path, Argument(help="A recipe file, or a folder of pictures.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to a recipe, such as data.resolution=128.")
    ] = None,
    json_file: Annotated[
        Path | None, Option("--json", metavar="FILE", help="Write the whole report here as well.")
    ] = None,
    html_file: Annotated[
        Path | None, Option("--html", metavar="FILE", help="Write a page with thumbnails here as well.")
    ] = None,
    quick: Annotated[
        bool, Option("--quick", help="Look for no near copies and no blur, which takes a second look at all pixels.")
    ] = False,
) -> None:
    """Examine the pictures and captions of a recipe before hours are spent.

    Example: trainer doctor recipes/character-lora.yaml --html health.html
    """
    import json

    from rich.console import Console

    from trainer.core.errors import DataError
    from trainer.core.files import printable, write_atomically
    from trainer.core.progress import phases
    from trainer.data.health.examining import examine, look_closer
    from trainer.data.health.page import write_page
    from trainer.data.opened import OpenSources
    from trainer.data.scanning import scan

    patient = _of_folder(target, overrides or []) if target.is_dir() else _of_recipe(target, overrides or [])
    data, model = patient.data, patient.model
    opened = OpenSources(data.parts)
    with phases() as progress:
        verdicts, portraits = patient.memory("verdicts"), patient.memory("portraits")
        account = scan(opened.parts, data.limits, progress, memory=verdicts)
        seen = None if quick else look_closer(account, data, opened, model.scale, progress, portraits)
        report = examine(
            account, data, model=model, batch=patient.batch, portraits=seen, before=tuple(patient.findings)
        )
        if html_file is not None:
            write_page(html_file, report, opened, printable(str(target)), progress)
    console = Console()
    _show(console, report)
    if json_file is not None:
        write_atomically(json_file, json.dumps(report.as_json(), indent=1, ensure_ascii=True) + "\n")
    for file in (json_file, html_file):
        if file is not None:
            console.print(
                f"The whole report is in {printable(str(file))}.", markup=False, highlight=False, soft_wrap=True
            )
    if report.refused:
        raise Exit(DataError.exit_code)


@dataclass(kw_only=True)
class _Patient:
    """What is examined, and what is known of the model that it is for."""

    data: "DataSettings"
    model: "ModelFacts"
    batch: int = 1
    cache: Path | None = None  # where what was seen is remembered
    findings: "list[Finding]" = field(default_factory=list["Finding"])

    def memory(self, name: str) -> Path | None:
        """The part of the cache for one sort of things; None: nothing is remembered."""
        return None if self.cache is None else self.cache / name


def _of_folder(folder: Path, overrides: Sequence[str]) -> _Patient:
    from trainer.core.errors import RecipeError
    from trainer.data.batches import DataSettings
    from trainer.data.health.findings import ModelFacts
    from trainer.data.sources.folder import ImageFolder

    if overrides:
        raise RecipeError(
            "Only a recipe can be changed by KEY=VALUE; this is a folder.",
            where=str(folder),
            mend="Leave them out, or examine a recipe that names the folder.",
        )
    return _Patient(data=DataSettings(sources=(ImageFolder(path=folder),)), model=ModelFacts())


def _of_recipe(path: Path, overrides: Sequence[str]) -> _Patient:
    import torch

    from trainer.core.errors import WeightsError
    from trainer.data.health.findings import Finding, ModelFacts
    from trainer.recipe.reading import read_recipe

    recipe = read_recipe(path, overrides)
    patient = _Patient(data=recipe.data, model=ModelFacts(), batch=recipe.batch, cache=recipe.data.cache.folder)
    try:
        model = recipe.model.load(recipe.precision, torch.device("cpu"))
    except WeightsError as error:
        what = f"The base model cannot be opened, so tokens are not counted: {error.what}"
        patient.findings.append(Finding(kind="no-model", level="warning", what=what, mend=error.mend or ""))
        return patient
    model.vocabulary.add(recipe.adapter.new_words)
    patient.model = ModelFacts(
        scale=model.latent.scale,
        token_limit=model.token_limit,
        count_tokens=model.count_tokens,
        lost_words=model.lost_words,
    )
    return patient


def _show(console: "Console", report: "Report") -> None:
    """The tables, then the findings, errors first."""
    from trainer.cli.tables import bucket_table, share_table

    console.print(_files(report))
    console.print(share_table(report.shares))
    console.print(bucket_table(report.buckets, report.settings.resolution, report.batch))
    for finding in report.findings:
        console.print(_text_of(finding), markup=False, highlight=False, soft_wrap=True)
    if not report.findings:
        console.print("Nothing to mend.", markup=False, highlight=False)


def _files(report: "Report") -> "Table":
    from rich.table import Table

    names = ("found", "pictures", "captions", "masks", "refused", "passed over")
    table = Table(*names, title="Files", title_justify="left")
    counts = report.account.counts
    numbers = (counts[name] for name in ("accepted", "captions", "masks", "rejected", "ignored"))
    table.add_row(*(f"{number:,}" for number in (report.account.found, *numbers)))
    return table


def _text_of(finding: "Finding") -> str:
    """The finding on some lines; captions and names in it cannot paint the terminal."""
    from trainer.core.files import printable

    lines = [f"{finding.level}: {finding.what}"]
    lines += [f"  where: {name}" for name in finding.where[:_SHOWN]]
    if len(finding.where) > _SHOWN:
        lines.append(f"         and {len(finding.where) - _SHOWN} more")
    if finding.mend:
        lines.append(f"  mend:  {finding.mend}")
    return "\n".join(printable(line) for line in lines)
