"""trainer train RECIPE: run a recipe from its start, or from where it stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from typer import Argument, Exit, Option

if TYPE_CHECKING:
    import torch

    from trainer.core.errors import MemoryPlanError
    from trainer.core.run_folder import RunFolder
    from trainer.loop.run import Run
    from trainer.loop.stopping import Stopper
    from trainer.recipe.recipe import Recipe

_AUTO: Final = "auto"
_PAGE: Final = "report.html"
_SEARCH: Final = 180.0  # seconds of looking for what would fit
_PATIENCE: Final = 10.0  # seconds until what comes before the training is ended where it is, if it tells nothing


def command(
    recipe: Annotated[Path, Argument(metavar="RECIPE", help="A recipe file, such as recipes/character-lora.yaml.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes, such as adapter.rank=8.")
    ] = None,
    resume: Annotated[
        bool,
        Option("--resume", help="Go on from the newest checkpoint; --resume auto: if the run has begun, else begin."),
    ] = False,
) -> None:
    """Run a recipe from its start, or from where it stopped.

    Example: trainer train recipes/character-lora.yaml steps=400 optimizer.rate=5e-4
    """
    from trainer.loop.stopping import Stopped, Stopper

    # `auto` is a word of its own to the parser: as the value of --resume it would make one of the word that follows
    words = [str(recipe), *(overrides or [])]
    auto = resume and len(words) > 1 and _AUTO in words
    if auto:
        words.remove(_AUTO)
    try:
        with Stopper() as stopper:
            _train(Path(words[0]), words[1:], stopper, resume="if begun" if auto else resume)
    except Stopped as stopped:
        raise Exit(stopped.exit_code) from stopped


def _train(path: Path, overrides: list[str], stopper: "Stopper", *, resume: bool | Literal["if begun"]) -> None:
    """Run the recipe at `path`, and say how it ended.

    Raises:
        Stopped: by a signal, at a clean point.
    """
    from contextlib import nullcontext

    from trainer.core.collecting import without_collecting

    with without_collecting():
        from trainer.beginning import is_finished, run_folder_of
        from trainer.core.device import is_first_process
        from trainer.core.files import told_of_refusals
        from trainer.recipe.reading import read_recipe

    wanted = read_recipe(path, overrides)
    folder = run_folder_of(wanted)
    if is_finished(wanted):
        _finished(folder, stopper)
        return
    # of several processes that share a run, one holds its lock and tells
    with folder.owned() if is_first_process() else nullcontext(), told_of_refusals(folder.root):
        go_on = folder.recipe.is_file() if resume == "if begun" else resume
        _go(wanted, stopper, again=f"trainer train {path}", resume=go_on)


def _go(recipe: "Recipe", stopper: "Stopper", *, again: str, resume: bool) -> None:
    """The run, in a folder that is ours; `again` is how a person starts it."""
    from trainer.assemble import assemble
    from trainer.beginning import run_folder_of
    from trainer.core.device import is_first_process
    from trainer.core.progress import phases
    from trainer.loop.stopping import Stopped, Watched

    folder, first = run_folder_of(recipe), is_first_process()
    tell = print if first else _say_nothing
    with phases(quiet=not first) as progress:
        try:
            with stopper.interruptible(_PATIENCE):
                run = assemble(recipe, resume=resume, progress=Watched(progress, stopper))
        except Stopped:
            begun = " --resume" if folder.recipe.is_file() else ""
            tell(f"Stopped before the first step; what was encoded is kept. Go on with: {again}{begun}")
            raise
        try:
            result = _trained(run, stopper)
        except Stopped as stopped:
            told = f"Stopped after step {run.clock.step}; go on with: {again} --resume"
            tell(f"Done all the same. The result: {folder.result}" if stopped.finished else told)
            raise
        if not isinstance(result, Path):
            device = run.accelerator.device
            del run
            raise _advised(recipe, result, device, stopper) if first else result
    run.accelerator.end_training()
    tell(f"Done. The result: {result}  {_report(folder, stopper) if first else ''}")


def _trained(run: "Run", stopper: "Stopper") -> "Path | MemoryPlanError":
    """The result; or that memory ran out, where the caller is to let go of the run before anything else is done."""
    from trainer.core.errors import MemoryPlanError
    from trainer.loop.train import train

    try:
        with run.trackers:
            return train(run, stopper)
    except MemoryPlanError as error:
        error.__traceback__ = error.__cause__ = error.__context__ = None  # they hold the run, and so the model
        return error


def _finished(folder: "RunFolder", stopper: "Stopper") -> None:
    """Say so; what the end of the run should have left and did not, since it was killed there, is made."""
    from trainer.core.device import is_first_process

    if is_first_process() and not (folder.root / _PAGE).exists():
        with folder.owned():
            print(f"This run is finished. The result: {folder.result}  {_report(folder, stopper)}")
    else:
        print(f"This run is finished; nothing was changed. The result: {folder.result}")


def _report(folder: "RunFolder", stopper: "Stopper") -> str:
    """Write the page of the finished run, and say where; where that does not come off, the run is done all the same."""
    from trainer.core.errors import TrainerError
    from trainer.core.log import logger
    from trainer.core.progress import phases
    from trainer.loop.stopping import Stopped
    from trainer.reporting.page import write_report
    from trainer.reporting.record import RunRecord

    page = folder.root / _PAGE
    try:
        with stopper.interruptible(0), phases(quiet=True) as progress:
            write_report(RunRecord.read(folder.root), page, progress, examined=False)
    except Stopped:
        logger.info("The report is left out; trainer report %s writes it.", folder.root)
    except (TrainerError, OSError) as error:
        logger.warning("The report could not be written: %s", error)
    else:
        return f"Report: {page}"
    return f"Pictures: {folder.root / 'previews'}"


def _say_nothing(_words: str) -> None:
    pass


def _advised(
    recipe: "Recipe", error: "MemoryPlanError", device: "torch.device", stopper: "Stopper"
) -> "MemoryPlanError":
    """The same error with what the planner knows: the cheapest change by which the step needs less than it has now.

    Where memory is so short that even looking for it fails, or hangs since threads cannot start, it is the error alone.
    """
    from trainer.core.errors import MemoryPlanError
    from trainer.core.memory import OUT_OF_MEMORY, give_back, ran_out

    print("Memory ran out; looking for what would fit.", flush=True)
    give_back(device)
    try:
        with stopper.limited(_SEARCH):
            words = _what_fits(recipe)
    except TimeoutError:
        return error
    except OUT_OF_MEMORY as again:
        if not ran_out(again):
            raise
        return error
    return error if words is None else MemoryPlanError(error.what, where=error.where, mend=f"Add {words}.")


def _what_fits(recipe: "Recipe") -> str | None:
    """The cheapest changes with which a step would need less than is there, as a command line has them, if any do."""
    from trainer.core.progress import phases
    from trainer.planning.memory_plan import kind_here, largest_bucket, memory_allowed, plan_memory
    from trainer.planning.switches import make_fit
    from trainer.preparing import plan_data

    kind = kind_here()
    with phases(quiet=True) as progress:
        bucket = largest_bucket(plan_data(recipe, progress).buckets)
    plan = plan_memory(recipe, bucket, kind, step_alone=True)
    # what ran out here is less than there is, where others use the device too
    allowed = min(memory_allowed(recipe, kind) or plan.peak, plan.peak - 1)
    mended = make_fit(recipe, plan, allowed, lambda words: print(f"trying:    {words}", flush=True))
    return None if mended is None else " ".join(mended.words)
