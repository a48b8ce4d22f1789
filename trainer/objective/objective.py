"""The loss of one batch, composed of timesteps, noise, prediction, weighting and distance."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from typing_extensions import Self

from trainer.batch import Batch
from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.objective.distances import AnyDistance, Mse
from trainer.objective.moments import Moments
from trainer.objective.noises import AnyNoise, Gaussian
from trainer.objective.predictions import AnyPrediction, Prediction
from trainer.objective.schedules import NoiseSchedule
from trainer.objective.timesteps import AnyTimesteps, Uniform
from trainer.objective.weightings import AnyWeighting, Flat

Predict = Callable[[Tensor, Tensor, Batch], Tensor]
"""The network: noisy [B C h w] float32, t [B] float32 in [0, 1), the batch -> prediction [B C h w] of any dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """All chance of one batch, and what follows from it: nothing here depends on a picture or on a weight."""

    moments: Moments  # when each example is asked
    weight: Tensor  # [B] float32, how much it counts then
    noise: Tensor  # [B C h w] float32, what a perfect network would find
    mixed_in: Tensor  # [B C h w] float32, what is mixed in; the noise itself, unless inputs are perturbed

    def to(self, device: torch.device) -> Self:
        """The same on another device; the small numbers cross in one piece, and nothing is waited for."""
        t, a, s, weight = self.moments.stacked(self.weight).to(device, non_blocking=True).unbind()
        noise = self.noise.to(device, non_blocking=True)
        same = self.mixed_in is self.noise
        mixed_in = noise if same else self.mixed_in.to(device, non_blocking=True)
        return type(self)(moments=Moments(t=t, a=a, s=s), weight=weight, noise=noise, mixed_in=mixed_in)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What one batch costs; all on the batch's device, nothing waited for."""

    value: Tensor  # scalar, carries the gradient
    per_example: Tensor  # [B] without gradient; weighted by t, not yet by `Batch.weight`
    t: Tensor  # [B] float32 in [0, 1): the moment at which each example was asked


class Objective(Settings):
    """What is minimised."""

    timesteps: AnyTimesteps = Uniform()
    """Which moments between picture and noise are trained on."""
    noise: AnyNoise = Gaussian()
    """Which noise is mixed in."""
    perturbation: NonNegativeFloat = 0.0
    """How much noise is added to the noise that is mixed in, while the one to be found stays what it was: the network
    learns to live with its own errors. 0.1 is usual; 0: none."""
    prediction: AnyPrediction | None = None
    """What the network is taught to predict; nothing said: what its weights were trained for."""
    weighting: AnyWeighting = Flat()
    """How much each moment counts."""
    distance: AnyDistance = Mse()
    """How an error is measured."""
    unmasked: float = Field(default=0.0, ge=0, le=1)
    """How much the places outside of a picture's mask count. 0: nothing there is learnt; 1: as if there were no mask.
    A little, such as 0.1, keeps what surrounds the masked part from falling apart. Nothing without masks."""

    def __call__(  # noqa: PLR0913 - the two that most callers leave out are named
        self,
        predict: Predict,
        batch: Batch,
        schedule: NoiseSchedule,
        native: Prediction,
        seeds: Seeds,
        *,
        world: int = 1,
        base: Predict | None = None,
    ) -> Loss:
        """The loss of `batch`, float32 throughout.

        The value is world * sum(weight * loss) / total: filling counts nothing, and the mean of the values (and
        gradients) over `world` processes is what one process with the whole batch would get.

        Args:
            predict: the network.
            batch: what to learn from; with a mask, an example's loss is the mean over its masked places.
            schedule: how this model mixes noise in.
            native: what this model's weights were trained to predict.
            seeds: the chance of the run; the draws belong to (batch.number, batch.slots).
            world: the number of processes that share the batch.
            base: the network as it is without what is trained, giving answers without gradients; asked of those rows
                alone whose target is its answer, with a batch of them alone, and not at all where there are none.
        """
        drawn = self.draw(batch, schedule, native, seeds).to(batch.latents.device)
        return self.loss(predict, batch, drawn, native, world=world, base=base)

    def draw(self, batch: Batch, schedule: NoiseSchedule, native: Prediction, seeds: Seeds) -> Drawn:
        """All chance of `batch`, on the CPU; of its latents the shape alone is asked, so it may be drawn ahead.

        Source: of the perturbation, Ning et al. 2023, arXiv:2301.11706, on DDPM-IP.
        """
        prediction = native if self.prediction is None else self.prediction
        t = schedule.snap(self.timesteps.draw(seeds, batch.number, batch.slots))
        a, s = schedule.at(t)
        moments = Moments(t=t, a=a, s=s)
        noise = mixed_in = self.noise.draw(batch.latents.shape[1:], seeds, batch.number, batch.slots)
        if self.perturbation > 0:
            more = seeds.normal("perturbation", batch.number, batch.slots, batch.latents.shape[1:])
            mixed_in = noise + self.perturbation * more
        weight = self.weighting.weigh(moments.snr, prediction.gain(a, s))
        return Drawn(moments=moments, weight=weight, noise=noise, mixed_in=mixed_in)

    def loss(
        self,
        predict: Predict,
        batch: Batch,
        drawn: Drawn,
        native: Prediction,
        *,
        world: int = 1,
        base: Predict | None = None,
    ) -> Loss:
        """The loss of `batch` with what was drawn for it, which lies on its device; see `__call__`."""
        prediction = native if self.prediction is None else self.prediction
        clean = batch.latents.float()  # [B C h w]
        a, s = drawn.moments.columns
        noisy = a * clean + s * drawn.mixed_in
        target = prediction.target(clean, drawn.noise, a, s)
        if (
            batch.from_base
        ):  # before the network itself is asked, whose answer takes much memory until the backward pass
            target = _with_answers(target, noisy, drawn.moments, batch, base)
        predicted = predict(noisy, drawn.moments.t, batch).float()
        off = self.distance.measure(predicted, target, drawn.moments, self._counted(batch.mask))
        per_example = drawn.weight * off
        value = (batch.weight * per_example).sum() * (world / batch.total)
        return Loss(value=value, per_example=per_example.detach(), t=drawn.moments.t)

    def _counted(self, mask: Tensor | None) -> Tensor | None:
        """How much each place counts, [B 1 h w]: unmasked + (1 - unmasked) * mask."""
        if mask is None:
            return None
        # In the form that leaves a mask of ones exactly as it is.
        return mask.float() if self.unmasked == 0 else 1 - (1 - self.unmasked) * (1 - mask.float())


def _with_answers(target: Tensor, noisy: Tensor, moments: Moments, batch: Batch, base: Predict | None) -> Tensor:
    """`target` [B C h w] with the base model's own answers in the rows that ask for them."""
    if base is None:
        raise ValueError("this batch asks for the base model's answers, and there is no base model")
    if len(batch.from_base) == len(batch):
        return base(noisy, moments.t, batch).detach().float()
    rows = torch.tensor(batch.from_base, device=target.device)
    answers = base(noisy[rows], moments.t[rows], batch.take(batch.from_base))
    return target.index_copy(0, rows, answers.detach().float())
