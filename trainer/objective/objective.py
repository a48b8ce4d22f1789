"""The loss of one batch, composed of timesteps, noise, prediction, weighting and distance."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from trainer.batch import Batch
from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.objective.distances import AnyDistance, Mse
from trainer.objective.noises import AnyNoise, Gaussian
from trainer.objective.predictions import AnyPrediction, Prediction
from trainer.objective.schedules import NoiseSchedule
from trainer.objective.timesteps import AnyTimesteps, Uniform
from trainer.objective.weightings import AnyWeighting, Flat

Predict = Callable[[Tensor, Tensor, Batch], Tensor]
"""The network: noisy [B C h w] float32, t [B] float32 in [0, 1), the batch -> prediction [B C h w] of any dtype."""


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
    prediction: AnyPrediction | None = None
    """What the network is taught to predict; nothing said: what its weights were trained for."""
    weighting: AnyWeighting = Flat()
    """How much each moment counts."""
    distance: AnyDistance = Mse()
    """How an error is measured."""
    unmasked: float = Field(default=0.0, ge=0, le=1)
    """How much the places outside of a picture's mask count. 0: nothing there is learnt; 1: as if there were no mask.
    A little, such as 0.1, keeps what surrounds the masked part from falling apart. Nothing without masks."""

    def __call__(
        self,
        predict: Predict,
        batch: Batch,
        schedule: NoiseSchedule,
        native: Prediction,
        seeds: Seeds,
        *,
        world: int = 1,
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
        """
        prediction = native if self.prediction is None else self.prediction
        t = schedule.snap(self.timesteps.draw(seeds, batch.number, batch.slots))
        a, s = schedule.at(t)
        weight = self.weighting.weigh((a / s).square(), prediction.gain(a, s))

        clean = batch.latents.float()  # [B C h w]
        # All chance is drawn on the CPU; the small numbers cross to the device in one piece.
        t, a, s, weight = torch.stack((t, a, s, weight)).to(clean.device, non_blocking=True).unbind()
        noise = self.noise.draw(clean.shape[1:], seeds, batch.number, batch.slots).to(clean.device, non_blocking=True)

        column_a, column_s = a[:, None, None, None], s[:, None, None, None]
        predicted = predict(column_a * clean + column_s * noise, t, batch).float()
        target = prediction.target(clean, noise, column_a, column_s)
        per_example = weight * self.distance.measure(predicted, target, self._counted(batch.mask))
        value = (batch.weight * per_example).sum() * (world / batch.total)
        return Loss(value=value, per_example=per_example.detach(), t=t)

    def _counted(self, mask: Tensor | None) -> Tensor | None:
        """How much each place counts, [B 1 h w]: unmasked + (1 - unmasked) * mask."""
        if mask is None:
            return None
        # In the form that leaves a mask of ones exactly as it is.
        return mask.float() if self.unmasked == 0 else 1 - (1 - self.unmasked) * (1 - mask.float())
