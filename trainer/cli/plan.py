"""trainer plan RECIPE: what a run will do with its data, and what it will need, before it begins."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

if TYPE_CHECKING:
    from trainer.data.buckets import Bucket
    from trainer.planning.pretending import Kind
    from trainer.recipe.recipe import Recipe


def command(
    recipe: Annotated[Path, Argument(metavar="RECIPE", help="A recipe file, such as recipes/character-lora.yaml.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes, such as data.resolution=128.")
    ] = None,
    memory: Annotated[
        str | None,
        Option(metavar="SIZE", help="What the run may use, such as 8GiB; else the recipe's, or all there is."),
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"] | None, Option(help="What to plan for; else what this machine would train on.")
    ] = None,
    json: Annotated[Path | None, Option(metavar="FILE", help="Write the memory plan as JSON too.")] = None,
) -> None:
    """Show sources, buckets, epochs and cache of a run before it begins, and the memory and time that it needs.

    The recipe's own step is made without numbers: no weights are read, and no GPU is needed. Ends with code 4 where
    the run does not fit.

    Example: trainer plan recipes/character-lora.yaml --memory 8GiB --device cuda batch=4
    """
    from rich.console import Console

    from trainer.cli.tables import bucket_table, share_table
    from trainer.core.progress import phases
    from trainer.planning.memory_plan import kind_here, largest_bucket
    from trainer.preparing import plan_data
    from trainer.recipe.reading import read_recipe

    wanted = read_recipe(recipe, [*(overrides or []), *([] if memory is None else [f"memory={memory}"])])
    wanted.model.check()
    with phases() as progress:
        plan = plan_data(wanted, progress)
    console = Console()
    console.print(share_table(plan.shares))
    console.print(bucket_table(plan.buckets, wanted.data.resolution, wanted.batch))
    for line in plan.lines():
        print(line)
    _tell_needs(wanted, largest_bucket(plan.buckets), device or kind_here(), json)


def _tell_needs(recipe: "Recipe", bucket: "Bucket", kind: "Kind", file: Path | None) -> None:
    """Print memory and time.

    Raises:
        MemoryPlanError: it does not fit; the message has the cheapest change that makes it fit.
    """
    from json import dumps

    from rich.console import Console

    from trainer.cli.tables import memory_table
    from trainer.core.files import write_atomically
    from trainer.planning.advice import as_json, does_not_fit, duration, verdict
    from trainer.planning.memory_plan import memory_allowed, plan_memory
    from trainer.planning.switches import make_fit
    from trainer.planning.timing import pace_of

    plan = plan_memory(recipe, bucket, kind)
    Console().print(memory_table(plan))
    allowed = memory_allowed(recipe, kind)
    pace = pace_of(recipe, plan)
    for line in (*verdict(plan, allowed), duration(recipe, pace)):
        print(line)
    mended = error = None
    if allowed is not None and not plan.fits(allowed):
        mended = make_fit(recipe, plan, allowed, lambda words: print(f"trying:    {words}", flush=True))
        error = does_not_fit(plan, allowed, mended)
    if file is not None:
        write_atomically(file, dumps(as_json(recipe, plan, allowed, pace, mended), indent=1) + "\n")
    if error is not None:
        raise error
