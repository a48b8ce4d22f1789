"""trainer evaluate RUN ...: which checkpoint is the best, at which strength, why, and what is wrong with the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trainer.judging.writing import Verdict


def command(  # noqa: PLR0913 - each is a word of the command line
    runs: Annotated[list[Path], Argument(metavar="RUN", help="A run folder; several are shown side by side.")],
    prompt: Annotated[
        list[str] | None, Option("--prompt", "-p", help="May be given more than once; else the recipe's.")
    ] = None,
    prompts: Annotated[Path | None, Option(help="A file of prompts, of which the texts are taken.")] = None,
    seeds: Annotated[int, Option(min=1, max=64, help="Pictures a prompt; more make the answer surer.")] = 4,
    strengths: Annotated[
        str, Option(help="Tried of the best checkpoint, beside full strength; empty: no others.")
    ] = "0.6,0.8",
    features: Annotated[
        Path | None, Option(help="The folder of CLIP or DINOv2 weights to see with; else a built-in space.")
    ] = None,
    best: Annotated[bool, Option("--best", help="Copy the best to NAME.safetensors.")] = False,
) -> None:
    """Score every checkpoint of a run, recommend one, and say why.

    Writes RUN/evaluation.json and the pictures that it drew into RUN/evaluation.

    Example: trainer evaluate runs/blob --seeds 6 --best
    """
    import time

    from rich.console import Console

    from trainer.cli.asking import wishes_of
    from trainer.core.errors import RecipeError
    from trainer.core.files import printable
    from trainer.core.progress import phases
    from trainer.evaluation.networks import features_in
    from trainer.judging.best import put_best
    from trainer.judging.comparing import differences, evaluate_all
    from trainer.judging.writing import Verdict, write_verdicts

    if best and len(runs) > 1:
        raise RecipeError("Only one run has a best at a time.", where="--best", mend="Name one run, or leave it out.")
    given = [wish.prompt for wish in wishes_of(prompt or [], prompts)] if prompt or prompts else []
    tried, space, began = _numbers(strengths), features_in(features), time.perf_counter()
    with phases() as progress:
        verdicts = [Verdict.of(one) for one in evaluate_all(runs, given, seeds, space, tried, progress)]
    copied = None
    if best:
        chosen = verdicts[0].recommendation
        copied = put_best(verdicts[0].evaluation.models, chosen.file, chosen.step)
    told = differences([one.evaluation.models.recipe for one in verdicts])
    files = write_verdicts(verdicts, told, time.perf_counter() - began, copied)
    console = Console()
    for one in told:
        console.print(f"{one['key']}: {' | '.join(one['values'])}", markup=False, highlight=False, soft_wrap=True)
    for verdict in verdicts:
        _show(console, verdict)
    if copied is not None:
        console.print(f"Copied to {printable(str(copied))}.", markup=False, highlight=False, soft_wrap=True)
    for file in files:
        console.print(printable(str(file)), markup=False, highlight=False, soft_wrap=True)


def _numbers(words: str) -> list[float]:
    from trainer.core.errors import RecipeError

    try:
        found = [float(word) for word in words.split(",") if word.strip()]
    except ValueError as error:
        raise RecipeError(
            f"These are no numbers: {words!r}.", where="--strengths", mend="Write them as 0.6,0.8."
        ) from error
    if any(not 0 < strength <= 2 for strength in found):
        raise RecipeError("A strength lies above 0 and up to 2.", where="--strengths", mend="Write them as 0.6,0.8.")
    return sorted(set(found))


def _show(console: "Console", verdict: "Verdict") -> None:
    from trainer.core.files import printable

    console.print(_table(verdict))
    for finding in verdict.findings:
        mend = f"\n  mend:  {finding.mend}" if finding.mend else ""
        text = f"{finding.level}: {printable(finding.what)}{mend}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    chosen = verdict.recommendation
    for line in (chosen.sentence, *(f"  {reason}" for reason in chosen.why)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(verdict: "Verdict") -> "Table":
    """One row a candidate, the base model first."""
    from rich.table import Table

    evaluation = verdict.evaluation
    names = ("step", "at", "kept back", "like", "closed", "diverse", "copied", "drift", "score")
    table = Table(*names, title=evaluation.models.folder.name, title_justify="left")
    rows: Sequence[float | None] = (None, *(float(score) for score in evaluation.choice.scores))
    for one, score in zip((evaluation.base, *evaluation.candidates), rows, strict=True):
        scores, held_out = one.measured.scores(evaluation.base.measured), one.measured.held_out
        table.add_row(
            f"{one.step}" if one.step else "base",
            f"{one.strength:g}" if one.step else "",
            "-" if held_out is None else f"{held_out.mean():.4f}",
            *(_told(scores[name]) for name in ("likeness", "gap_closed", "diversity", "copied", "drift")),
            "" if score is None else f"{score:.2f}{' *' if one is evaluation.best else ''}",
        )
    return table


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
