"""All that one training run is made of."""

from collections.abc import Callable, Mapping
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
    networks: tuple[torch.nn.Module, ...]  # those that are trained, as accelerate prepared them
    averaged_here: tuple[torch.nn.Parameter, ...]  # trained ones whose gradients accelerate does not average
    rates: Mapping[str, float]  # the full rate of each part, the denoiser's first
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

    def set_rates(self) -> Mapping[str, float]:
        """Give every part its rate for the coming step, a function of the clock alone; and tell them, by part."""
        factor = self.rate.factor(self.clock.step, self.clock.steps)
        rates = {name: rate * factor for name, rate in self.rates.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        return rates

    def average_gradients(self) -> None:
        """Let each process have the mean of all processes' gradients, where accelerate does not see to it."""
        gradients = [parameter.grad for parameter in self.averaged_here if parameter.grad is not None]
        if self.accelerator.num_processes == 1 or not gradients:
            return
        own = torch.cat([gradient.flatten() for gradient in gradients])
        mean: Any = self.accelerator.reduce(own, "mean")  # a tensor comes back for a tensor
        for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

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
