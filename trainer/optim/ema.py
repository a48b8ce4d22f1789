"""An average of the weights over the steps, which is calmer than any single one of them."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn import Parameter

from trainer.core.errors import CheckpointError
from trainer.core.settings import Settings
from trainer.core.shards import shared_like

_AT_ONCE: Final = 1 << 24  # numbers that are made float32 together, so that a large model needs no second copy


class EmaSettings(Settings):
    """Previews and the resulting file come from an average of the weights, in which late steps count most."""

    decay: float = Field(default=0.999, ge=0, lt=1)
    """The share of the average that each update keeps; 0.999 looks back over some 1,000 updates."""
    warmup: Literal["ratio", "power", "none"] = "ratio"
    """How the share grows with the number n of updates, up to `decay`, so that the beginning is soon forgotten: as
    (1 + n) / (10 + n), as (1 - 1 / (n + 1)) ^ (power + 1), or not at all."""
    power: NonNegativeFloat = 6.94
    """With warmup: power, how short the average looks back: 6.94 over a tenth of the run, 16.97 over a twentieth."""
    every: PositiveInt = 1
    """Steps between updates."""

    def build(self, parameters: Sequence[Parameter]) -> "Ema":
        """The averages of `parameters`, which are their values of now."""
        return Ema(self, parameters)

    def share_kept(self, updates: int) -> float:
        """The share of the average that the update after `updates` updates keeps, in [0, 1).

        Source: of the ratio, the `num_updates` of TensorFlow's ExponentialMovingAverage; of the power, Karras et al.
        2023, arXiv:2312.02696, section 3.1, where `power` is gamma.
        """
        if self.warmup == "none":
            return self.decay
        if self.warmup == "ratio":
            return min(self.decay, (1 + updates) / (10 + updates))
        return min(self.decay, (1 - 1 / (updates + 1)) ** (self.power + 1))


class Ema:
    """The averages of some parameters, float32 whatever the parameters are, each on its parameter's device."""

    def __init__(self, settings: EmaSettings, parameters: Sequence[Parameter]) -> None:
        self._settings = settings
        self._parameters = list(parameters)
        self._averages = [parameter.detach().to(torch.float32, copy=True) for parameter in self._parameters]
        self._shown = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after `step` steps of the run; nothing where no update is due then.

        How much is kept follows from `step` alone, so that a run that is resumed goes on exactly.
        """
        if self._shown:
            raise RuntimeError("the parameters hold their averages, which cannot be averaged")
        if step % self._settings.every:
            return
        taken_in = 1 - self._settings.share_kept(step // self._settings.every - 1)
        for averages, weights in self._portions():
            same = [weight if weight.dtype == torch.float32 else weight.float() for weight in weights]
            torch._foreach_lerp_(averages, same, taken_in)  # pyright: ignore[reportPrivateUsage] - has no other name

    @contextmanager
    def averaged(self) -> Generator[None, None, None]:
        """Inside, the parameters hold the averages; afterwards what they held before, bit for bit, whatever happens.

        Float32 parameters change places with their averages, one tensor at a time; of others, which could not hold the
        averages exactly, a copy waits.
        """
        if self._shown:
            raise RuntimeError("the parameters hold their averages already")
        changed: list[tuple[Parameter, Tensor, Tensor | None]] = []
        self._shown = True
        try:
            for parameter, average in zip(self._parameters, self._averages, strict=True):
                changed.append((parameter, average, _show(parameter, average)))
            yield
        finally:
            for parameter, average, before in changed:
                _put_back(parameter, average, before)
            self._shown = False

    def state(self) -> dict[str, Tensor]:
        """The averages by the place of their parameter, as a checkpoint keeps them."""
        if self._shown:
            raise RuntimeError("the averages have changed places with the parameters")
        return {f"{place:06d}": average for place, average in enumerate(self._averages)}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put averages back.

        Raises:
            CheckpointError: one is missing, unknown, of another form or not finite. The averages are then as they were.
        """
        own = self.state()
        wrong = sorted(own.keys() ^ state.keys())
        wrong += [name for name in own if name in state and not _fits(state[name], own[name])]
        if wrong:
            raise CheckpointError(
                f"The averages of the weights cannot be restored: {len(wrong)} do not fit, such as {wrong[0]}.",
                where="the checkpoint's averages (ema)",
                mend="Resume with the recipe that the run was started with, or from an earlier checkpoint.",
            )
        for name, average in own.items():
            average.copy_(shared_like(state[name], average))

    def _portions(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Averages and parameters, as many together as may be made float32 at once."""
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        numbers = 0
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            averages.append(average)
            weights.append(parameter.detach())
            numbers += parameter.numel()
            if numbers >= _AT_ONCE:
                yield averages, weights
                averages, weights, numbers = [], [], 0
        if averages:
            yield averages, weights


@torch.no_grad()
def _show(parameter: Parameter, average: Tensor) -> Tensor | None:
    """Let the parameter hold the average; what it held is then in `average`, or else in what is given back."""
    before = parameter.detach().clone()
    parameter.copy_(average)
    if parameter.dtype != average.dtype:
        return before
    average.copy_(before)
    return None


@torch.no_grad()
def _put_back(parameter: Parameter, average: Tensor, before: Tensor | None) -> None:
    """Undo `_show`, whose answer was `before`."""
    if before is not None:
        parameter.copy_(before)
        return
    shown = parameter.detach().clone()
    parameter.copy_(average)
    average.copy_(shown)


def _fits(saved: Tensor, own: Tensor) -> bool:
    return saved.shape == own.shape and saved.dtype == own.dtype and bool(torch.isfinite(saved).all())
