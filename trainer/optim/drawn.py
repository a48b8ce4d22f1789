"""The weights that shall be drawn, where they are not those that are trained."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


@contextmanager
def drawn_weights(optimizer: Optimizer) -> Generator[None, None, None]:
    """Inside, the parameters hold what shall be drawn and exported; afterwards what they held before, bit for bit.

    Schedule-free optimisers train y = (1 - beta) z + beta x and want x to be drawn: Defazio et al. 2024,
    arXiv:2405.15682, Algorithm 1. For all others nothing happens. The library's own way (eval() and train()) is not
    taken: it computes y back from x, which rounds. Here a copy of each such parameter waits instead.

    Args:
        optimizer: not inside another program's shell; it must not step meanwhile.
    """
    kept: list[tuple[Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter, lead, beta in _averaging(optimizer):
                kept.append((parameter, parameter.detach().clone()))
                parameter.lerp_(lead.to(parameter.device), 1 - 1 / beta)  # y + (1 - 1 / beta) (z - y) = x
        yield
    finally:
        with torch.no_grad():
            for parameter, trained in kept:
                parameter.copy_(trained)


def _averaging(optimizer: Optimizer) -> Iterator[tuple[Parameter, Tensor, float]]:
    """Each parameter y of a schedule-free optimiser that has moved, with its z and beta."""
    for group in optimizer.param_groups:
        if "train_mode" not in group:  # the mark of schedulefree's groups; asking for the class would import it
            continue
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})  # asking state[...] would add to what is saved
            if "z" in state:
                yield parameter, state["z"], group["betas"][0]
