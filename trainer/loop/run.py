"""All that one training run is made of."""

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.adapters.trainable import Trainable
from trainer.core.clock import Clock
from trainer.core.errors import CheckpointError
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.core.shards import gathered, lend, whole
from trainer.data.batches import CachedBatches
from trainer.evaluation.held_out import HeldOut
from trainer.evaluation.previews import Previews
from trainer.families.model import DiffusionModel
from trainer.loop.ahead import Ahead
from trainer.loop.checkpoints import Checkpoints, State
from trainer.loop.ledger import Ledger
from trainer.loop.passing import Passing
from trainer.loop.sharding import forget_whole
from trainer.objective.objective import Objective
from trainer.optim.drawn import drawn_weights
from trainer.optim.ema import Ema
from trainer.optim.flat import FlatGroups
from trainer.optim.fused_backward import OneByOne
from trainer.optim.prodigy import found_rate
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
    flat: FlatGroups  # the trained parameters, as the optimiser sees them
    ema: Ema | None
    sharded: bool  # whether each process holds but a share of what is trained
    averaged_here: tuple[torch.nn.Parameter, ...]  # trained ones whose gradients accelerate does not average
    rates: Mapping[str, float]  # the full rate of each part, the denoiser's first
    rate: Rate
    clip_norm: float
    batches: CachedBatches
    ahead: Ahead  # the same, and what is drawn for them, before they are asked for
    passing: Passing
    ledger: Ledger
    previews: Previews
    preview_every: int
    checkpoints: Checkpoints
    trackers: Trackers
    export: Callable[[], Path]  # writes the result as other programs read it
    export_adapter: Callable[[], Path] | None  # the same on the way, under its step; None: nothing is kept on the way
    held_out: HeldOut | None  # None: no picture is kept back

    @property
    def is_main(self) -> bool:
        """Whether this process writes files: one of all processes does."""
        return self.accelerator.is_main_process

    @property
    def draws(self) -> bool:
        """Whether this process asks the denoiser when previews are drawn: with shards, all must."""
        return self.is_main or self.sharded

    def accumulating(self) -> AbstractContextManager[Any]:
        """Around each pass: gradients travel in the last one of a step; of shards in each, or they would lie whole."""
        return self.accelerator.accumulate(*(() if self.sharded else self.networks))

    def set_rates(self) -> None:
        """Give every part its rate for the coming step, a function of the clock alone."""
        factor = self.rate.factor(self.clock.step, self.clock.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["name"]] * factor

    def moved_at(self) -> Mapping[str, float]:
        """The rate of each part in the last step, the denoiser's first; of Prodigy that which it has found."""
        found = {group["name"]: found_rate(group) for group in self.optimizer.param_groups}
        return {name: found[name] for name in self.rates}

    def gather_gradients(self) -> list[torch.nn.Parameter]:
        """The parameters that bear the step's gradients: few and long, and the same gradients in every process."""
        self.average_gradients()
        return self.flat.gather()

    def shorten(self, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
        """Let the whole gradient be no longer than `clip_norm`; gives its length [] before.

        Of weights that are moved in the backward pass, which is over, only the length is left to tell.
        """
        optimizer = bare(self.optimizer)
        if isinstance(optimizer, OneByOne) and optimizer.fused:
            return optimizer.norm.to(self.accelerator.device)
        norm: Any = self.accelerator.clip_grad_norm_(parameters, self.clip_norm)  # a tensor, as we use no DeepSpeed
        return whole(norm)

    def average_gradients(self) -> None:
        """Let each process have the mean of all processes' gradients, where accelerate does not see to it."""
        gradients = [parameter.grad for parameter in self.averaged_here if parameter.grad is not None]
        if self.accelerator.num_processes == 1 or not gradients:
            return
        own = torch.cat([gradient.flatten() for gradient in gradients])
        mean: Any = self.accelerator.reduce(own, "mean")  # a tensor comes back for a tensor
        for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @contextmanager
    def drawn(self) -> Generator[None, None, None]:
        """Inside, the model is as it shall be drawn and exported, and nobody else uses it."""
        shown = drawn_weights(bare(self.optimizer)) if self.ema is None else self.ema.averaged()
        with self.ahead.resting(), self.passing.resting(), shown:
            self._forget_whole()
            yield
        self._forget_whole()

    def _forget_whole(self) -> None:
        for network in self.networks if self.sharded else ():
            forget_whole(network)

    def lend_state(self) -> None:
        """With shards, give the first process what `state` puts together there; without, nothing."""
        if self.sharded:
            lend((bare(self.optimizer).state_dict()["state"], self.trainable.state()))
            lend(self.ema.state() if self.ema is not None else ())

    def lend_weights(self) -> None:
        """With shards, give the first process what `export` puts together there; without, nothing."""
        if self.sharded:
            lend([network.state_dict() for network in self.networks])

    def from_main(self, value: int | None) -> int | None:
        """The first process's number, in all processes; they wait for each other here."""
        if self.accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def state(self) -> State:
        """All that the run needs to go on from here; with shards, all others `lend_state` at the same time."""
        tensors, facts = pack(bare(self.optimizer))
        scaler = self.accelerator.scaler
        return State(
            step=self.clock.step,
            pictures=self.clock.pictures,
            trained=gathered(self.trainable.state()),
            optimizer=tensors,
            optimizer_facts=facts,
            ema=None if self.ema is None else gathered(self.ema.state()),
            scaler=None if scaler is None else scaler.state_dict(),
        )

    def restore(self, state: State) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: it is of another recipe.
        """
        self.clock.step, self.clock.pictures = state.step, state.pictures
        self.trainable.load_state(state.trained)
        unpack(bare(self.optimizer), dict(state.optimizer), dict(state.optimizer_facts))
        if (self.ema is None) != (state.ema is None):
            raise CheckpointError(
                "The checkpoint and the recipe differ in whether the weights are averaged.",
                where="ema",
                mend="Resume with the recipe that the run was started with.",
            )
        if self.ema is not None and state.ema is not None:
            self.ema.load_state(state.ema)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))


def bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's shell."""
    return getattr(optimizer, "optimizer", optimizer)  # the shell has the attribute, a plain optimiser has not
