"""THE training loop: every regular deed stands here, in the order in which it happens."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.batch import Batch, Conditioning
from trainer.loop.agreeing import Agreement
from trainer.loop.ahead import Ready
from trainer.loop.keeping import check_room, export, judge, keep_adapter, preview, preview_base, save
from trainer.loop.rehearsal import rehearse
from trainer.loop.run import Run
from trainer.loop.stopping import Stopped, Stopper
from trainer.optim.flat import silence_unless


def train(run: Run, stopper: Stopper | None = None) -> Path:
    """Train until the clock says that it is done; the result lies in the run folder.

    Args:
        run: ready to train.
        stopper: that hears of signals already.

    Returns:
        The file that inference programs load.

    Raises:
        Stopped: SIGINT or SIGTERM came; everything is saved.
        NonFiniteError: loss or gradient were NaN or infinite three times in a row, or a weight is; the last checkpoint
            is whole.
        MemoryPlanError: the largest batch does not fit into memory; nothing was trained.
        NotWrittenError: the disk takes no more; the last checkpoint is whole.
    """
    heard = Stopper() if stopper is None else nullcontext(stopper)
    with heard as stopper, run.ahead, Agreement(stopper, run.accelerator.num_processes) as signal:
        begin(run, stopper, signal)
        while not run.clock.done and signal.asked is None:
            step(run)
            signal.exchange()
            if run.clock.due(run.preview_every) or (run.clock.done and signal.asked is None):
                preview(run, stopper)
            if run.held_out is not None and run.held_out.due(run.clock):
                judge(run, run.held_out)
            last = run.clock.done or signal.asked is not None
            if last or run.checkpoints.due(run.clock):
                save(run, last=last)
                keep_adapter(run)
        if signal.asked is not None and not run.clock.done:
            raise Stopped(signal.asked)
        result = export(run, stopper)
    if stopper.asked is not None:
        raise Stopped(stopper.asked, finished=True)
    return result


def begin(run: Run, stopper: Stopper, signal: Agreement) -> None:
    """Look whether there is room on the disk and in memory, and show where the run begins."""
    if run.is_main:
        run.checkpoints.resumed = run.clock.step
        check_room(run)
    if run.draws:
        preview_base(run, stopper)
    for network in run.networks:
        network.train()
    if not run.clock.done and signal.asked is None:
        rehearse(run, one_pass)
        if run.held_out is not None and run.clock.step == 0:
            judge(run, run.held_out)


def step(run: Run) -> None:
    """One movement of the weights, and its line in the ledger; nothing here waits for the device."""
    began = run.ledger.begin()
    run.set_rates()
    losses: list[Tensor] = []
    batches: list[Batch] = []
    for number in range(run.clock.batch, run.clock.batch + run.clock.accumulate):
        ready = run.ahead.take(number)
        # layers with chance of their own (dropout) ask torch's generator: it too is a function of the place
        torch.manual_seed(ready.layers)
        with run.accumulating():
            losses.append(run.passing(partial(one_pass, run), ready))
        batches.append(ready.batch)
    own = torch.stack(losses)
    loss: Any = run.accelerator.reduce(own.mean(), "mean")  # a tensor comes back for a tensor
    norm = move(run, loss)
    run.clock.tick(sum(batch.total for batch in batches))
    if run.ema is not None:
        run.ema.update(run.clock.step)
    keys = [batch.keys for batch in batches]
    run.ledger.enter(run.clock.step, began, torch.cat((torch.stack((loss, norm)), own)), run.moved_at(), keys)


def one_pass(run: Run, ready: Ready) -> Tensor:
    """One forward and one backward pass, which adds to the gradients. Returns the loss, []."""
    words = meaning(run, ready.batch)

    def predict(noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        asked = words if batch is ready.batch else meaning(run, batch)
        return run.model.predict(noisy, run.model.schedule.index(t), asked, batch.geometry)

    def base(noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad(), run.trainable.silenced():
            return run.model.predict(noisy, run.model.schedule.index(t), meaning(run, batch), batch.geometry)

    world = run.accelerator.num_processes
    loss = run.objective.loss(predict, ready.batch, ready.drawn, run.model.prediction, world=world, base=base)
    run.accelerator.backward(loss.value)
    return loss.value.detach()


def meaning(run: Run, batch: Batch) -> Conditioning:
    """What the batch's words mean: out of the cache, or of this moment where the text encoders are trained."""
    return batch.words if isinstance(batch.words, Conditioning) else run.model.encode_words_live(batch.words)


def move(run: Run, loss: Tensor) -> Tensor:
    """Move the weights; where loss or gradient is not finite, as if the gradient were zero, and the ledger hears of it.

    Returns:
        The length of the gradient [] before it was shortened; with loss scaling it is infinite now and then.
    """
    parameters = run.gather_gradients()
    norm = run.shorten(parameters)
    silence_unless(torch.isfinite(loss + norm), parameters)
    run.optimizer.step()
    run.flat.drop()
    run.trainable.after_step()
    return norm
