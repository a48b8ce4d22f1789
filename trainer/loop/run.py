"""All that one training run is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.adapters.trainable import Trainable
from trainer.core.clock import Clock
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.data.batches import CachedBatches
from trainer.evaluation.previews import Previews
from trainer.families.model import DiffusionModel
from trainer.loop.checkpoints import Checkpoints, State
from trainer.objective.objective import Objective
from trainer.optim.rates import Rate
from trainer.optim.state import pack, unpack
from trainer.tracking.trackers import Trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Objects, ready to train; no settings, no choices."""

    accelerator: "Accelerator"
    folder: RunFolder
    seeds: Seeds
    clock: Clock
    model: DiffusionModel
    trainable: Trainable
    objective: Objective
    optimizer: torch.optim.Optimizer  # as accelerate prepared it
    rates: tuple[float, ...]  # the full rate of each parameter group
    rate: Rate
    clip_norm: float
    batches: CachedBatches
    previews: Previews
    preview_every: int
    checkpoints: Checkpoints
    trackers: Trackers
    export: Callable[[], Path]  # writes the result as other programs read it

    @property
    def is_main(self) -> bool:
        """Whether this process writes files: one of all processes does."""
        return self.accelerator.is_main_process

    def set_rate(self) -> float:
        """Give every parameter group its rate for the coming step; a function of the clock alone."""
        factor = self.rate.factor(self.clock.step, self.clock.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return self.rates[0] * factor

    def state(self) -> State:
        """All that the run needs to go on from here."""
        tensors, facts = pack(_bare(self.optimizer))
        scaler = self.accelerator.scaler
        return State(
            step=self.clock.step,
            pictures=self.clock.pictures,
            trained=self.trainable.state(),
            optimizer=tensors,
            optimizer_facts=facts,
            scaler=None if scaler is None else scaler.state_dict(),
        )

    def restore(self, state: State) -> None:
        """Go on from a saved state."""
        self.clock.step, self.clock.pictures = state.step, state.pictures
        self.trainable.load_state(state.trained)
        unpack(_bare(self.optimizer), dict(state.optimizer), dict(state.optimizer_facts))
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's shell."""
    return getattr(optimizer, "optimizer", optimizer)  # the shell has the attribute, a plain optimiser has not
