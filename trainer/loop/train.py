"""THE training loop: every regular deed stands here, in the order in which it happens."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.batch import Batch, Conditioning
from trainer.loop.ahead import Ready
from trainer.loop.rehearsal import rehearse
from trainer.loop.run import Run
from trainer.loop.stopping import Stopped, Stopper
from trainer.optim.flat import silence_unless


def train(run: Run) -> Path:
    """Train until the clock says that it is done; the result lies in the run folder.

    Returns:
        The file that inference programs load.

    Raises:
        Stopped: SIGINT or SIGTERM came; everything is saved.
        NonFiniteError: the loss or the gradient is NaN or infinite; the last checkpoint is whole.
        MemoryPlanError: the largest batch does not fit into memory; nothing was trained.
    """
    with Stopper() as stopper, run.ahead:
        if run.is_main:
            run.previews.draw_base()
        for network in run.networks:
            network.train()
        if not run.clock.done:
            rehearse(run, one_pass)
        while not run.clock.done and stopper.asked is None:
            step(run)
            if run.clock.due(run.preview_every) or (run.clock.done and stopper.asked is None):
                preview(run)
            if run.clock.due(run.checkpoints.settings.every) or run.clock.done or stopper.asked is not None:
                save(run)
        if stopper.asked is not None and not run.clock.done:
            raise Stopped(stopper.asked)
        with run.drawn():
            result = run.export() if run.is_main else run.folder.result
        run.trackers.event("done", run.clock.step, result=result.name)
    return result


def step(run: Run) -> None:
    """One movement of the weights, and its line in the ledger; nothing here waits for the device."""
    began = run.ledger.begin()
    rates = run.set_rates()
    losses: list[Tensor] = []
    batches: list[Batch] = []
    for number in range(run.clock.batch, run.clock.batch + run.clock.accumulate):
        ready = run.ahead.take(number)
        # layers with chance of their own (dropout) ask torch's generator: it too is a function of the place
        torch.manual_seed(ready.layers)
        with run.accelerator.accumulate(*run.networks):
            losses.append(run.passing(partial(one_pass, run), ready))
        batches.append(ready.batch)
    own = torch.stack(losses)
    loss: Any = run.accelerator.reduce(own.mean(), "mean")  # a tensor comes back for a tensor
    norm = move(run, loss)
    run.clock.tick(sum(batch.total for batch in batches))
    if run.ema is not None:
        run.ema.update(run.clock.step)
    keys = [batch.keys for batch in batches]
    run.ledger.enter(run.clock.step, began, torch.cat((torch.stack((loss, norm)), own)), rates, keys)


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
    """Move the weights, unless loss or gradient is not finite: the ledger then stops the run, a little later.

    Returns:
        The length of the gradient [] before it was shortened; 0 with loss scaling, which expects infinite ones.
    """
    parameters = run.gather_gradients()
    norm = run.shorten(parameters)
    silence_unless(torch.isfinite(loss + norm), parameters)
    run.optimizer.step()
    run.flat.drop()
    run.trainable.after_step()
    return norm if run.accelerator.scaler is None else torch.zeros_like(loss)


def preview(run: Run) -> None:
    """Draw the recipe's prompts."""
    run.ledger.settle()
    if run.is_main:
        with run.drawn():
            sheet = run.previews.draw(run.clock.step)
        if sheet is not None:
            run.trackers.pictures(run.clock.step, {"grid": sheet})
    run.accelerator.wait_for_everyone()


def save(run: Run) -> None:
    """Save everything, so that the run can go on from here."""
    run.ledger.settle()
    if run.is_main:
        path = run.checkpoints.save(run.state())
        run.trackers.event("checkpoint", run.clock.step, path=path.name)
    run.accelerator.wait_for_everyone()
