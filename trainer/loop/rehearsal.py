"""One pass that leaves no trace, before the first step: what does not fit is found out now, and not in hours."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from trainer.core.errors import MemoryPlanError
from trainer.core.memory import OUT_OF_MEMORY, ran_out
from trainer.loop.ahead import Ready, each_tensor, making
from trainer.loop.run import Run, bare
from trainer.optim.fused_backward import OneByOne


def rehearse(run: Run, one_pass: Callable[[Run, Ready], Tensor]) -> None:
    """Make a pass over the largest batch of the run, and forget its gradients.

    Weights, optimiser, averages, clock, loss scaling and chance are afterwards bit for bit what they were.

    Args:
        run: ready to train, its networks in training mode.
        one_pass: the loop's own forward and backward pass.

    Raises:
        MemoryPlanError: there is not enough memory for it.
    """
    device = run.accelerator.device
    make = making(run.batches, run.objective, run.model, run.seeds, run.accelerator.process_index)
    optimizer = bare(run.optimizer)
    still = optimizer.standing_still() if isinstance(optimizer, OneByOne) else nullcontext()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), still:
            ready = each_tensor(make(run.batches.largest), lambda tensor: tensor.to(device))
            torch.manual_seed(ready.layers)
            one_pass(run, ready)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except OUT_OF_MEMORY as error:
        if not ran_out(error):
            raise
        raise MemoryPlanError(
            "There is not enough memory for the largest batch of this run.",
            where=str(error).strip().splitlines()[0][:300] if str(error).strip() else device.type,
            mend="`trainer plan RECIPE` tells what would make it fit, the cheapest first.",
        ) from error
    finally:
        run.flat.drop()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # blocks of these sizes may not be those that the run's own batches want
