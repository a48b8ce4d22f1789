"""What each step cost: written down when the device has come to it, so that no step waits for its own loss."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.core.device import peak_bytes
from trainer.core.errors import NonFiniteError
from trainer.core.log import logger
from trainer.core.memory import SpillWatch, read_device_memory
from trainer.tracking.trackers import Trackers

_MOST = 8  # steps that may be under way; a person who stops the run waits for no more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    step: int  # counted from 1
    numbers: Tensor  # [2 + A] on the CPU, once `arrived` says so: loss, gradient's length, own loss of each pass
    rates: Mapping[str, float]
    keys: Sequence[tuple[str, ...]]  # of the pictures of each pass
    seconds: Callable[[], float]
    arrived: Callable[[bool], bool]


class Ledger:
    """The steps of a run, told to its trackers in their order.

    On CUDA the numbers of a step come in their own time, up to eight steps late; elsewhere they are there at once.
    """

    def __init__(self, trackers: Trackers, device: torch.device, most: int = _MOST) -> None:
        self._trackers = trackers
        self._device = device
        self._most = most
        self._open: deque[_Entry] = deque()
        self._spilling = SpillWatch()

    def begin(self) -> "Moment":
        """The moment at which a step begins."""
        return Moment(self._device)

    def enter(
        self,
        step: int,
        began: "Moment",
        numbers: Tensor,
        rates: Mapping[str, float],
        keys: Sequence[tuple[str, ...]],
    ) -> None:
        """A step is on its way; steps before it whose numbers have come are told.

        Args:
            step: counted from 1.
            began: what `begin` gave.
            numbers: [2 + A] on the device: the loss over all processes, the length of the gradient, and this
                process's loss in each of A passes. Where the first two are not finite, the weights must not have
                taken it.
            rates: the learning rate of each part.
            keys: the pictures of each pass.

        Raises:
            NonFiniteError: as of `settle`.
        """
        ended = Moment(self._device)
        entry = _Entry(
            step=step,
            numbers=numbers.to("cpu", non_blocking=self._device.type == "cuda"),
            rates=rates,
            keys=keys,
            seconds=lambda: began.until(ended),
            arrived=Moment(self._device).passed,
        )
        self._open.append(entry)
        while self._open and self._open[0].arrived(len(self._open) > self._most):
            self._tell(self._open.popleft())

    def settle(self) -> None:
        """Wait for all steps that are on their way, and tell them: due before anything is kept of the weights.

        Raises:
            NonFiniteError: the loss or the gradient of a step was NaN or infinite.
        """
        while self._open:
            self._open[0].arrived(True)
            self._tell(self._open.popleft())

    def _tell(self, entry: _Entry) -> None:
        loss, norm, *passes = entry.numbers.tolist()
        if not all(map(_is_finite, (loss, norm))):
            self._open.clear()  # later steps began with weights that were left as they were
            guilty = [keys for keys, own in zip(entry.keys, passes, strict=True) if not _is_finite(own)]
            pictures = [key[:12] for keys in guilty or entry.keys for key in keys]
            raise NonFiniteError(
                f"The loss or its gradient is not a finite number in step {entry.step}.",
                where=f"pictures {', '.join(pictures)} (see data.json)",
                mend="Lower optimizer.rate, or use precision: bfloat16 or float32; the last checkpoint is whole.",
            )
        seconds = entry.seconds()
        self._trackers.step(
            entry.step, loss=loss, rates=entry.rates, seconds=seconds, peak_bytes=peak_bytes(self._device)
        )
        memory = read_device_memory(self._device)
        warning = None if memory is None else self._spilling.look(seconds, memory)
        if warning is not None:
            logger.warning("%s", warning)
            self._trackers.event("warning", entry.step, text=warning)


class Moment:
    """A point in the device's work; on devices that do not work ahead of the program, in time."""

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def passed(self, wait: bool) -> bool:
        """Whether the device has come to it; with `wait`, it has when this returns."""
        if self._event is None:
            return True
        if wait:
            self._event.synchronize()
        return self._event.query()

    def until(self, other: "Moment") -> float:
        """Seconds from here to a later moment; both have passed."""
        if self._event is None or other._event is None:
            return other._time - self._time
        return self._event.elapsed_time(other._event) / 1000


def _is_finite(number: float) -> bool:
    return number - number == 0
