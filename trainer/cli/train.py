"""trainer train RECIPE: run a recipe from its start, or from where it stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

if TYPE_CHECKING:
    from trainer.core.errors import MemoryPlanError
    from trainer.recipe.recipe import Recipe


def command(
    recipe: Annotated[Path, Argument(metavar="RECIPE", help="A recipe file, such as recipes/character-lora.yaml.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes, such as adapter.rank=8.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Run a recipe from its start, or from where it stopped.

    Example: trainer train recipes/character-lora.yaml steps=400 optimizer.rate=5e-4
    """
    from contextlib import nullcontext

    from trainer.assemble import assemble
    from trainer.beginning import is_finished, run_folder_of
    from trainer.core.device import is_first_process
    from trainer.core.errors import MemoryPlanError
    from trainer.core.progress import phases
    from trainer.loop.stopping import Stopped
    from trainer.loop.train import train
    from trainer.recipe.reading import read_recipe

    wanted = read_recipe(recipe, overrides or [])
    folder = run_folder_of(wanted)
    if is_finished(wanted):
        print(f"This run is finished; nothing was changed. The result: {folder.result}")
        return
    first = is_first_process()  # of several that share a run, one holds its lock and tells
    with folder.owned() if first else nullcontext(), phases(quiet=not first) as progress:
        run = assemble(wanted, resume=resume, progress=progress)
        try:
            with run.trackers:
                result = train(run)
        except MemoryPlanError as error:
            raise (_advised(wanted, error) if first else error) from error
        except Stopped as stopped:
            if first:
                print(f"Stopped after step {run.clock.step}; go on with: trainer train {recipe} --resume")
            raise Exit(stopped.exit_code) from stopped
    if first:
        print(f"Done. The result: {result}  Pictures: {folder.root / 'previews'}")


def _advised(recipe: "Recipe", error: "MemoryPlanError") -> "MemoryPlanError":
    """The same error with what the planner knows: the cheapest change by which the step needs less than it has now."""
    from trainer.core.errors import MemoryPlanError
    from trainer.core.progress import phases
    from trainer.planning.memory_plan import kind_here, largest_bucket, memory_allowed, plan_memory
    from trainer.planning.switches import make_fit
    from trainer.preparing import plan_data

    print("Memory ran out; looking for what would fit.", flush=True)
    kind = kind_here()
    with phases(quiet=True) as progress:
        bucket = largest_bucket(plan_data(recipe, progress).buckets)
    plan = plan_memory(recipe, bucket, kind, step_alone=True)
    # what ran out here is less than there is, where others use the device too
    allowed = min(memory_allowed(recipe, kind) or plan.peak, plan.peak - 1)
    mended = make_fit(recipe, plan, allowed, lambda words: print(f"trying:    {words}", flush=True))
    if mended is None:
        return error
    return MemoryPlanError(error.what, where=error.where, mend=f"Add {' '.join(mended.words)}.")
