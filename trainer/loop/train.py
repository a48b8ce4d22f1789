"""THE training loop: every regular deed stands here, in the order in which it happens."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.batch import Batch, Conditioning
from trainer.core.device import peak_bytes
from trainer.core.errors import NonFiniteError
from trainer.loop.run import Run
from trainer.loop.stopping import Stopped, Stopper


def train(run: Run) -> Path:
    """Train until the clock says that it is done; the result lies in the run folder.

    Returns:
        The file that inference programs load.

    Raises:
        Stopped: SIGINT or SIGTERM came; everything is saved.
        NonFiniteError: the loss or the gradient is NaN or infinite; the last checkpoint is whole.
    """
    with Stopper() as stopper:
        if run.is_main:
            run.previews.draw_base()
        for network in run.networks:
            network.train()
        while not run.clock.done and stopper.asked is None:
            step(run)
            if run.clock.due(run.preview_every) or (run.clock.done and stopper.asked is None):
                preview(run)
            if run.clock.due(run.checkpoints.settings.every) or run.clock.done or stopper.asked is not None:
                save(run)
        if stopper.asked is not None and not run.clock.done:
            raise Stopped(stopper.asked)
        result = run.export() if run.is_main else run.folder.result
        run.trackers.event("done", run.clock.step, result=result.name)
    return result


def step(run: Run) -> None:
    """One movement of the weights, and its line in the events."""
    started = time.perf_counter()
    losses: list[Tensor] = []
    pictures = 0
    rates = run.set_rates()
    batches = run.batches.starting_at(run.clock.batch)
    for _, batch in zip(range(run.clock.accumulate), batches, strict=False):
        losses.append(one_pass(run, batch.to(run.accelerator.device)))
        pictures += batch.total
    run.clock.tick(pictures)
    loss: Any = run.accelerator.reduce(torch.stack(losses).mean(), "mean")  # a tensor comes back for a tensor
    seconds = time.perf_counter() - started
    run.trackers.step(
        run.clock.step, loss=float(loss), rates=rates, seconds=seconds, peak_bytes=peak_bytes(run.accelerator.device)
    )


def one_pass(run: Run, batch: Batch) -> Tensor:
    """One forward and one backward pass; the weights move when enough passes are summed. Returns the loss, []."""
    # layers with chance of their own (dropout) ask torch's generator: it too is a function of the place
    torch.manual_seed(run.seeds.integer("layers", batch.number, run.accelerator.process_index))
    with run.accelerator.accumulate(*run.networks):
        words = meaning(run, batch)
        loss = run.objective(
            lambda noisy, t, b: run.model.predict(noisy, run.model.schedule.index(t), words, b.geometry),
            batch,
            run.model.schedule,
            run.model.prediction,
            run.seeds,
            world=run.accelerator.num_processes,
        )
        run.accelerator.backward(loss.value)
        if run.accelerator.sync_gradients:
            run.average_gradients()
            norm = run.accelerator.clip_grad_norm_(run.trainable.parameters(), run.clip_norm)
            refuse_non_finite(run, loss.value, norm, batch)
        run.optimizer.step()
        run.optimizer.zero_grad()
    return loss.value.detach()


def meaning(run: Run, batch: Batch) -> Conditioning:
    """What the batch's words mean: out of the cache, or of this moment where the text encoders are trained."""
    return batch.words if isinstance(batch.words, Conditioning) else run.model.encode_words_live(batch.words)


def refuse_non_finite(run: Run, loss: Tensor, norm: Tensor | None, batch: Batch) -> None:
    """Stop before a NaN reaches the weights.

    Raises:
        NonFiniteError: the loss is not finite; or the gradient is not, where no loss scaling expects that now and then.
    """
    scaled = run.accelerator.scaler is not None
    watched = loss.detach() if norm is None or scaled else loss.detach() + norm
    if not torch.isfinite(watched):
        raise NonFiniteError(
            f"The loss or its gradient is not a finite number in step {run.clock.step + 1}.",
            where=f"pictures {', '.join(key[:12] for key in batch.keys)} (see data.json)",
            mend="Lower optimizer.rate, or use precision: bfloat16 or float32; the last checkpoint is whole.",
        )


def preview(run: Run) -> None:
    """Draw the recipe's prompts."""
    if run.is_main:
        sheet = run.previews.draw(run.clock.step)
        if sheet is not None:
            run.trackers.pictures(run.clock.step, {"grid": sheet})
    run.accelerator.wait_for_everyone()


def save(run: Run) -> None:
    """Save everything, so that the run can go on from here."""
    if run.is_main:
        path = run.checkpoints.save(run.state())
        run.trackers.event("checkpoint", run.clock.step, path=path.name)
    run.accelerator.wait_for_everyone()
