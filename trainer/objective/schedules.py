"""How noise is mixed in: noisy = a * clean + s * noise, with a and s given by the time t in [0, 1)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from trainer.core.errors import WeightsError


class NoiseSchedule(ABC):
    """The path from picture to noise; t = 0 is almost the picture, t near 1 almost noise.

    Every verb takes t [B], a floating-point number in [0, 1), and answers on t's device.
    """

    @abstractmethod
    def snap(self, t: Tensor) -> Tensor:
        """The nearest t [B] that the schedule tells apart, float32: noise and network then mean the same moment."""

    @abstractmethod
    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The shares a [B] of the clean latent and s [B] of the noise, float32."""

    @abstractmethod
    def index(self, t: Tensor) -> Tensor:
        """The number [B] by which the network knows t, int64."""

    def snr(self, t: Tensor) -> Tensor:
        """The signal-to-noise ratio (a / s)^2 [B], float32."""
        a, s = self.at(t)
        return (a / s).square()


@dataclass(frozen=True, slots=True, eq=False)
class DiscreteSchedule(NoiseSchedule):
    """A table of variance-preserving steps: a^2 + s^2 = 1 at each.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 4 (a is the root of alpha-bar).
    """

    signal: Tensor  # [steps] float32 on the CPU: a of each step
    noise: Tensor  # [steps] float32 on the CPU: s of each step

    @classmethod
    def from_betas(cls, betas: Tensor, *, zero_terminal_snr: bool = False) -> Self:
        """The schedule of the variances `betas` [steps], each in (0, 1).

        Args:
            betas: how much noise each step adds.
            zero_terminal_snr: shift and stretch a so that the last step is pure noise, as Lin et al. 2023,
                arXiv:2305.08891, Algorithm 1. It happens here, before anybody can take an SNR from the table.
        """
        a = (1 - betas.double()).cumprod(0).sqrt()
        if zero_terminal_snr:
            a = (a - a[-1]) * (a[0] / (a[0] - a[-1]))
        return cls(signal=a.float(), noise=(1 - a.square()).sqrt().float())

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, object]) -> Self:
        """The schedule that a `scheduler_config.json` of diffusers describes; absent keys mean diffusers' defaults.

        Raises:
            WeightsError: the file names a form of betas that we do not know, or its numbers make no schedule.
        """
        trained = config.get("trained_betas")
        if trained is not None:
            betas = _table(trained)
        else:
            steps = _number(config, "num_train_timesteps", 1000)
            start, end = _number(config, "beta_start", 0.0001), _number(config, "beta_end", 0.02)
            betas = _betas(str(config.get("beta_schedule", "linear")), start, end, int(steps))
        if len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise _refused("its betas do not lie between 0 and 1")
        return cls.from_betas(betas, zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)))

    @property
    def steps(self) -> int:
        """How many moments the network was trained on; 1000 for Stable Diffusion."""
        return len(self.signal)

    def moment(self, index: Tensor) -> Tensor:
        """The t [B] whose `index` is `index` [B]: the middle of its step, so that rounding cannot move it, float32."""
        return ((index + 0.5) / self.steps).float()

    def index(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.index`: 0 .. steps - 1."""
        return (t * self.steps).long().clamp(0, self.steps - 1)

    def snap(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.snap`."""
        return self.moment(self.index(t))

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `NoiseSchedule.at`."""
        index = self.index(t)
        return self.signal.to(t.device)[index], self.noise.to(t.device)[index]


def _betas(form: str, start: float, end: float, steps: int) -> Tensor:
    """The betas [steps] of the forms that diffusers' schedulers know by name, float64."""
    if form == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if form == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    if form == "squaredcos_cap_v2":
        # Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17; betas are capped at 0.999 as there.
        bar = (torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008
        bar = (bar * (math.pi / 2)).cos().square()
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    raise _refused(f"its beta_schedule {form!r} is none of linear, scaled_linear, squaredcos_cap_v2")


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _refused(f"its {key} is no number")
    if key == "num_train_timesteps" and not 2 <= value <= 100_000:
        raise _refused(f"its {key} is {value}")
    return value


def _table(value: object) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _refused("its trained_betas are no list of numbers") from error


def _refused(reason: str) -> WeightsError:
    return WeightsError(
        f"The noise schedule of this model cannot be read: {reason}.",
        where="scheduler/scheduler_config.json",
        mend="Take the scheduler folder of the model that these weights come from.",
    )
