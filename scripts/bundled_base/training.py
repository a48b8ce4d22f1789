"""Train text encoder and U-Net together on cached latents until the minutes are spent."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bundled_base.batches import BatchMaker
from bundled_base.optimization import Muon
from bundled_base.parallel import Team
from bundled_base.state import Progress, load_state, pack_optimizer, save_state, unpack_optimizer
from bundled_base.student import Student, parameter_groups

WARM_UP_STEPS = 100
FINAL_RATE = 0.01  # of the peak
AVERAGE_DECAY = 0.999
HINT_WEIGHT = 0.1
EMBEDDING_RATE = 3.0  # rare words are seen a few dozen times in all
WEIGHT_DECAY = 0.01
LOG_EVERY = 25


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    minutes: float
    batch_size: int  # per process
    rate: float
    checkpoint_minutes: float = 8.0
    words_minutes: float = 5.0  # of them the text encoder spends alone with the captions
    max_steps: int = 10**9
    grid_steps: int = 12  # of the sampler; the other processes wait meanwhile


class Training:
    """The networks, their optimizers, their running average, and how far they have come."""

    def __init__(self, student: Student, plan: Plan, team: Team, folder: Path) -> None:
        matrices, tables, others = parameter_groups(student)
        rest = [{"params": others, "lr": plan.rate}, {"params": tables, "lr": plan.rate * EMBEDDING_RATE}]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "muon": Muon(matrices, lr=plan.rate, weight_decay=WEIGHT_DECAY, team=team),
            "adamw": torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True),
        }
        self.parameters = matrices + tables + others
        self.student = student.train()
        self.plan = plan
        self.team = team
        self.folder = folder
        self.progress = Progress()
        self.average = {name: value.detach().clone() for name, value in student.named_parameters()}
        self._peaks = {name: [group["lr"] for group in o.param_groups] for name, o in self.optimizers.items()}

    def set_rate(self, share_done: float) -> None:
        """Set the learning rates: a short warm-up in steps, then a cosine over the wall-clock share."""
        warm = min(1.0, (self.progress.steps + 1) / WARM_UP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share_done)))
        factor = warm * (FINAL_RATE + (1 - FINAL_RATE) * cosine)
        for name, optimizer in self.optimizers.items():
            for group, peak in zip(optimizer.param_groups, self._peaks[name], strict=True):
                group["lr"] = peak * factor

    def step(self, maker: BatchMaker) -> tuple[float, float]:
        """Take one step; return the losses of the denoiser and of the hint on this process's batch."""
        batch = maker.draw(self.plan.batch_size).to(self.parameters[0].device)
        denoising, hint = self.student(batch)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        (denoising + HINT_WEIGHT * hint).backward()
        self.team.average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.progress.steps += 1
        self.progress.samples += self.plan.batch_size * self.team.size
        self._update_average()
        return float(denoising.item()), float(hint.item())

    @torch.no_grad()
    def _update_average(self) -> None:
        steps = self.progress.steps
        decay = min(AVERAGE_DECAY, (1 + steps) / (10 + steps))
        values = [value.detach() for value in dict(self.student.named_parameters()).values()]
        torch._foreach_lerp_(list(self.average.values()), values, 1 - decay)  # pyright: ignore[reportPrivateUsage]

    def save(self) -> None:
        """Write the whole state; the next run of the same folder goes on from it."""
        tensors: dict[str, Tensor] = {f"now/{name}": v for name, v in self.student.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, optimizer in self.optimizers.items():
            tensors |= pack_optimizer(name, optimizer)
        save_state(self.folder, tensors, self.progress)

    def resume(self) -> None:
        """Go on from the folder's state, where there is one."""
        found = load_state(self.folder)
        if found is None:
            return
        tensors, self.progress = found
        self.student.load_state_dict(_below("now/", tensors))
        for name, value in _below("average/", tensors).items():
            self.average[name].copy_(value)
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(name, optimizer, tensors)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def train(training: Training, maker: BatchMaker, on_checkpoint: Callable[[Training], None]) -> None:
    """Train until the plan's minutes or steps are spent, with a state and a sample grid now and then."""
    plan, team = training.plan, training.team
    started = time.monotonic() - training.progress.minutes * 60
    saved = time.monotonic()
    losses: deque[tuple[float, float]] = deque(maxlen=LOG_EVERY)
    while True:
        minutes = team.agree((time.monotonic() - started) / 60)
        training.progress.minutes = minutes
        if minutes >= plan.minutes or training.progress.steps >= plan.max_steps:
            break
        training.set_rate(minutes / plan.minutes)
        losses.append(training.step(maker))
        if not team.leads:
            continue
        if training.progress.steps % LOG_EVERY == 0:
            _log(training, losses)
        if time.monotonic() - saved > plan.checkpoint_minutes * 60:
            training.save()
            on_checkpoint(training)
            saved = time.monotonic()
    if team.leads:
        training.save()
        on_checkpoint(training)


def _log(training: Training, losses: deque[tuple[float, float]]) -> None:
    denoising = sum(pair[0] for pair in losses) / len(losses)
    hint = sum(pair[1] for pair in losses) / len(losses)
    progress = training.progress
    print(
        f"step {progress.steps}  samples {progress.samples}  minute {progress.minutes:.1f}"
        f"  loss {denoising:.4f}  hint {hint:.4f}",
        flush=True,
    )
