"""trainer doctor RECIPE|FOLDER: what is wrong with a dataset, before hours are spent on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.data.account import Account
    from trainer.data.batches import DataSettings
    from trainer.data.doctor import Finding

_SHOWN = 5  # files named a finding; the JSON names all


def command(
    target: Annotated[Path, Argument(help="A recipe file, or a folder of pictures.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to a recipe, such as data.resolution=128.")
    ] = None,
    json_file: Annotated[
        Path | None, Option("--json", metavar="FILE", help="Write the whole report here as well.")
    ] = None,
) -> None:
    """Examine the pictures and captions of a recipe before hours are spent.

    Example: trainer doctor recipes/character-lora.yaml
    """
    import json

    from rich.console import Console

    from trainer.core.errors import DataError
    from trainer.core.files import write_atomically
    from trainer.core.progress import phases
    from trainer.data.doctor import examine
    from trainer.data.sources import scan

    patient = _of_folder(target, overrides or []) if target.is_dir() else _of_recipe(target, overrides or [])
    with phases() as progress:
        account = scan(patient.data.sources, patient.data.limits, progress)
    findings = [
        *patient.findings,
        *examine(account, patient.data, batch=patient.batch, scale=patient.scale, count_tokens=patient.count_tokens),
    ]
    console = Console()
    console.print(_files(account))
    console.print(_shares(account))
    console.print(_buckets(account, patient))
    for finding in findings:
        console.print(_text_of(finding), markup=False, highlight=False)
    if json_file is not None:
        report = {"findings": [finding.as_json() for finding in findings], "account": account.as_json()}
        write_atomically(json_file, json.dumps(report, indent=1, ensure_ascii=True) + "\n")
        console.print(f"The whole report is in {json_file}.", markup=False)
    if any(finding.level == "error" for finding in findings):
        raise Exit(DataError.exit_code)


@dataclass(kw_only=True)
class _Patient:
    """What is examined, and what is known of the model that it is for."""

    data: "DataSettings"
    batch: int = 1
    scale: int = 8  # of every Stable Diffusion
    count_tokens: Callable[[str], int] | None = None
    findings: "list[Finding]" = field(default_factory=list["Finding"])


def _of_folder(folder: Path, overrides: Sequence[str]) -> _Patient:
    from trainer.core.errors import RecipeError
    from trainer.data.batches import DataSettings
    from trainer.data.sources import ImageFolder

    if overrides:
        raise RecipeError(
            "Only a recipe can be changed by KEY=VALUE; this is a folder.",
            where=str(folder),
            mend="Leave them out, or examine a recipe that names the folder.",
        )
    return _Patient(data=DataSettings(sources=(ImageFolder(path=folder),)))


def _of_recipe(path: Path, overrides: Sequence[str]) -> _Patient:
    import torch

    from trainer.core.errors import WeightsError
    from trainer.data.doctor import Finding
    from trainer.recipe.reading import read_recipe

    recipe = read_recipe(path, overrides)
    patient = _Patient(data=recipe.data, batch=recipe.batch)
    try:
        model = recipe.model.load(recipe.precision, torch.device("cpu"))
    except WeightsError as error:
        what = f"The base model cannot be opened, so tokens are not counted: {error.what}"
        patient.findings.append(Finding("warning", what, mend=error.mend or ""))
        return patient
    patient.scale, patient.count_tokens = model.latent.scale, model.count_tokens
    return patient


def _files(account: "Account") -> "Table":
    from rich.table import Table

    table = Table("found", "pictures", "captions", "refused", "passed over", title="Files", title_justify="left")
    numbers = (account.found, account.accepted, account.captions, account.rejected, account.ignored)
    table.add_row(*(str(number if isinstance(number, int) else len(number)) for number in numbers))
    return table


def _shares(account: "Account") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from trainer.core.files import printable
    from trainer.data.doctor import shares_of

    table = Table("source", "pictures", "seen in an epoch", "share", title="Sources", title_justify="left")
    for one in shares_of(account):
        table.add_row(escape(printable(one.source)), str(one.pictures), str(one.showings), f"{one.share:.0%}")
    return table


def _buckets(account: "Account", patient: _Patient) -> "Table":
    from rich.table import Table

    from trainer.data.doctor import count_buckets

    title = f"Buckets of {patient.data.resolution} pixels, batches of {patient.batch}"
    table = Table("size", "pictures", "seen in an epoch", "batches", title=title, title_justify="left")
    for one in count_buckets(account, patient.data, patient.batch, patient.scale):
        size = f"{one.bucket.width} x {one.bucket.height}"
        table.add_row(size, str(one.pictures), str(one.showings), str(one.batches))
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
