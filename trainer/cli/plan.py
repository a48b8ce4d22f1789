"""trainer plan RECIPE: what a run will do with its data, before it begins."""

from pathlib import Path
from typing import Annotated

from typer import Argument


def command(
    recipe: Annotated[Path, Argument(metavar="RECIPE", help="A recipe file, such as recipes/character-lora.yaml.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes, such as data.resolution=128.")
    ] = None,
) -> None:
    """Show sources, buckets, epochs and cache of a run before it begins; loads no weights.

    Example: trainer plan recipes/character-lora.yaml batch=4
    """
    from rich.console import Console

    from trainer.cli.tables import bucket_table, share_table
    from trainer.core.progress import phases
    from trainer.preparing import plan_data
    from trainer.recipe.reading import read_recipe

    wanted = read_recipe(recipe, overrides or [])
    wanted.model.check()
    with phases() as progress:
        plan = plan_data(wanted, progress)
    console = Console()
    console.print(share_table(plan.shares))
    console.print(bucket_table(plan.buckets, wanted.data.resolution, wanted.batch))
    for line in plan.lines():
        print(line)
