"""What a run keeps: pictures, checkpoints and its result; and what happens where the disk takes no more."""

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Final

import torch

from trainer.core.errors import NotWrittenError, TrainerError
from trainer.core.files import free_bytes, megabytes, not_written
from trainer.core.log import logger
from trainer.core.run_folder import RunFolder
from trainer.evaluation.held_out import HeldOut
from trainer.loop.run import Run, bare
from trainer.loop.stopping import Stopped, Stopper

_PATIENCE: Final = 20.0  # seconds that the result may need once a signal has come
_PAUSES: Final = (1.0, 3.0, 6.0)  # seconds; together with the writing less than what a person who stops a run waits
_MOMENTS: Final = 2  # numbers that an optimiser keeps of each weight, at most, before it has any
_PIXEL: Final = 3  # bytes that a pixel of a picture takes at most


def check_room(run: Run) -> None:
    """Make sure that there is room for one checkpoint and the result, and warn where there is none for all of them.

    All are the result, the previews, and as many checkpoints as are kept, and one more while it is written.

    Raises:
        NotWrittenError: there is not even room for one and the result.
    """
    trained = sum(parameter.nbytes for parameter in run.trainable.parameters())
    moments = [part for state in bare(run.optimizer).state.values() for part in state.values()]
    kept = sum(part.nbytes for part in moments if isinstance(part, torch.Tensor))
    averages = 0 if run.ema is None else trained
    checkpoint = trained + averages + (kept or _MOMENTS * trained)
    free = free_bytes(run.folder.root)
    least = 2 * trained + kept + averages
    if free < least:
        raise NotWrittenError(
            "There is no room on the disk for a checkpoint and the result.",
            where=str(run.folder.root),
            mend=f"They take {megabytes(least)}, and {megabytes(free)} are free: make room, or set runs=FOLDER.",
        )
    settings, total = run.checkpoints.settings, run.clock.steps
    saves = total // settings.every if settings.every else 0
    there = min(saves, settings.keep + (run.clock.step > 0)) + 1
    on_the_way = 0 if run.export_adapter is None else min(saves, settings.adapters)
    need = there * checkpoint + (1 + on_the_way) * trained + _preview_bytes(run)
    have = free + run.checkpoints.bytes
    if have < need:
        run.trackers.warn(
            run.clock.step,
            f"The disk may become full: this run needs up to {megabytes(need)} in {run.folder.name}/ ({there} "
            f"checkpoints of up to {megabytes(checkpoint)}, the result, previews), and {megabytes(have)} can be had.",
        )


def preview(run: Run, stopper: Stopper | None = None) -> None:
    """Draw the recipe's prompts; a signal or a full disk leaves them out."""
    run.ledger.settle()

    def draw() -> None:
        sheet = run.previews.draw(run.clock.step)
        if sheet is not None:
            run.trackers.pictures(run.clock.step, {"grid": sheet, **run.previews.files(run.clock.step)})

    if run.draws:
        with run.drawn():
            _draw_or_leave_out(run, stopper or Stopper(), draw)
    run.accelerator.wait_for_everyone()


def preview_base(run: Run, stopper: Stopper) -> None:
    """Draw the recipe's prompts with the base model alone; a signal or a full disk leaves them out."""
    _draw_or_leave_out(run, stopper, run.previews.draw_base)


def _draw_or_leave_out(run: Run, stopper: Stopper, draw: Callable[[], object]) -> None:
    """Draw pictures that no run depends on, unless a signal has come or comes, or the disk is full."""
    try:
        # with shards all processes draw, and one that stopped alone would leave the others waiting
        with nullcontext() if run.sharded else stopper.interruptible(patience=0):
            draw()
    except Stopped:
        logger.info("The previews are left out.")
    except OSError as error:
        run.trackers.warn(run.clock.step, f"The previews could not be written: {error.strerror or error}.")


def judge(run: Run, held_out: HeldOut) -> None:
    """Measure what the model as it would be exported makes of the pictures that were kept back, and tell it."""
    run.ledger.settle()
    if run.draws:
        with run.drawn():
            run.trackers.event("held_out", run.clock.step, **held_out.measure())
    run.accelerator.wait_for_everyone()


def keep_adapter(run: Run) -> None:
    """Write what is trained as other programs load it, under its step, and remove what is too old to keep.

    The last one is the result itself. What goes wrong is a warning: the checkpoint stands.
    """
    if run.export_adapter is None or not run.checkpoints.due(run.clock) or run.clock.done:
        return
    if run.is_main:
        try:
            with run.drawn():
                run.export_adapter()
            _remove_adapters(run.folder, run.checkpoints.settings.adapters)
        except (OSError, TrainerError) as error:
            run.trackers.warn(run.clock.step, f"The adapter of this step could not be kept: {error}")
    run.accelerator.wait_for_everyone()


def _remove_adapters(folder: RunFolder, keep: int) -> None:
    """Take away all adapters on the way but the newest; words that a file brings lie beside it and go with it."""
    steps: dict[int, list[Path]] = {}
    for path in folder.adapters.iterdir():
        number = path.name.removeprefix(f"{folder.name}-")[:6]
        if number.isdigit():
            steps.setdefault(int(number), []).append(path)
    for step in sorted(steps)[:-keep]:
        for path in steps[step]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def save(run: Run, *, last: bool) -> None:
    """Save everything, so that the run can go on from here.

    What the disk refuses is tried again: soon, or at once if it is the last. A run that is done goes on to its result
    all the same.

    Raises:
        NotWrittenError: the run is to be stopped, and the disk refuses still.
    """
    run.ledger.settle()
    if run.is_main:
        state, path = run.state(), run.folder.checkpoint(run.clock.step)
        try:
            write = partial(run.checkpoints.save, state)
            path = _insisting(write, "The checkpoint", path) if last else write()
            run.trackers.event("checkpoint", run.clock.step, path=path.name)
        except NotWrittenError as error:
            if last and not run.clock.done:
                raise
            run.checkpoints.owe(run.clock.step)
            run.trackers.warn(run.clock.step, str(error))
    else:
        run.lend_state()
    run.checkpoints.owed = run.from_main(run.checkpoints.owed)  # all must know when the next one is due


def export(run: Run, stopper: Stopper) -> Path:
    """Write what the run was for. A signal lets it end, but not for ever: with --resume it is written again."""
    result = run.folder.result
    with run.drawn(), nullcontext() if run.sharded else stopper.interruptible(_PATIENCE):
        if not run.is_main:
            run.lend_weights()
        elif run.sharded:  # once: the others give their shares once
            result = _told(run.export, "The result", result)
        else:
            result = _insisting(run.export, "The result", result)
    run.trackers.event("done", run.clock.step, result=result.name)
    return result


def _insisting(deed: Callable[[], Path], what: str, path: Path) -> Path:
    """Do `deed`, which writes `path`; where the disk refuses, say what is missing and try again a few times.

    Args:
        deed: gives what it has written.
        what: begins the sentence of the message.
        path: of what it writes.

    Raises:
        NotWrittenError: the disk refuses still.
    """
    for pause in _PAUSES:
        try:
            return _told(deed, what, path)
        except NotWrittenError as error:
            logger.warning("%s", error)
            logger.warning("It is tried again in %.0f s.", pause)
            time.sleep(pause)
    return _told(deed, what, path)


def _told(deed: Callable[[], Path], what: str, path: Path) -> Path:
    try:
        return deed()
    except OSError as error:
        raise not_written(what, path, error) from error


def _preview_bytes(run: Run) -> int:
    """The most that previews can take: pictures do not come smaller as long as nobody knows what they show."""
    settings = run.previews.settings
    side = settings.size or run.previews.resolution
    sheets = 2 + (run.clock.steps // settings.every if settings.every else 0)
    return sheets * 3 * len(settings.prompts) * side * side * _PIXEL
