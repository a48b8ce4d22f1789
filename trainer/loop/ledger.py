"""What each step cost: written down when the device has come to it, so that no step waits for its own loss."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.core.device import peak_bytes
from trainer.core.errors import NonFiniteError
from trainer.core.files import printable
from trainer.core.log import logger
from trainer.core.memory import SpillWatch, read_device_memory
from trainer.data.example import Example
from trainer.tracking.trackers import Trackers

_MOST = 8  # steps that may be under way; a person who stops the run waits for no more
_IN_A_ROW = 3  # steps that are not finite, after which nothing is to be hoped for
_OVERFLOWS_IN_A_ROW = 30  # the loss is then scaled by 65536 / 2^30: it is not the scaling that makes it overflow
_CAPTION_SHOWN = 60  # signs


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

    def __init__(
        self,
        trackers: Trackers,
        device: torch.device,
        most: int = _MOST,
        *,
        examples: Iterable[Example] = (),
        scaled: bool = False,
    ) -> None:
        """Nothing is told yet.

        Args:
            trackers: who is told.
            device: that works ahead of the program, or does not.
            most: steps that may be under way.
            examples: what the keys of pictures stand for, to be named in messages.
            scaled: whether the loss is scaled, as with float16: gradients then overflow now and then, and their steps
                are passed over until the scale fits.
        """
        self._trackers = trackers
        self._device = device
        self._most = most
        self._examples = examples
        self._scaled = scaled
        self._open: deque[_Entry] = deque()
        self._lost: list[_Entry] = []  # those of the last steps, in a row, that were not finite
        self._overflows = 0  # in a row
        self.passed_over = 0  # steps of this life of the run that moved nothing by their own gradient
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
                taken it: their step is passed over.
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
            NonFiniteError: the loss or the gradient of three steps in a row was NaN or infinite.
        """
        while self._open:
            self._open[0].arrived(True)
            self._tell(self._open.popleft())

    def _tell(self, entry: _Entry) -> None:
        loss, norm, *_ = entry.numbers.tolist()
        overflow = self._scaled and _is_finite(loss) and not _is_finite(norm)
        self._overflows = self._overflows + 1 if overflow else 0
        if overflow and self._overflows < _OVERFLOWS_IN_A_ROW:
            self.passed_over += 1
        elif not (_is_finite(loss) and _is_finite(norm)):
            self._pass_over(entry)
        else:
            self._lost.clear()
        seconds = entry.seconds()
        self._trackers.step(
            entry.step, loss=loss, rates=entry.rates, seconds=seconds, peak_bytes=peak_bytes(self._device)
        )
        memory = read_device_memory(self._device)
        warning = None if memory is None else self._spilling.look(seconds, memory)
        if warning is not None:
            logger.warning("%s", warning)
            self._trackers.event("warning", entry.step, text=warning)

    def _pass_over(self, entry: _Entry) -> None:
        """Warn of a step that was not finite; the third in a row ends the run."""
        self.passed_over += 1
        self._lost.append(entry)
        first, last = self._lost[0].step, entry.step
        if len(self._lost) < _IN_A_ROW and not self._overflows:
            self._trackers.warn(
                last,
                f"The loss or its gradient is not a finite number in step {last}, so the step is passed over: "
                f"{'; '.join(self._pictures([entry]))}.",
            )
            return
        steps = f"steps {first} to {last}" if last > first else f"step {last}"
        self._open.clear()  # later steps began with weights that were left as they were
        raise NonFiniteError(
            f"The loss or its gradient is not a finite number in {steps}.",
            where="; ".join(self._pictures(self._lost)),
            mend="Lower optimizer.rate, or use precision: bfloat16 or float32; the last checkpoint is whole.",
        )

    def _pictures(self, entries: Sequence[_Entry]) -> list[str]:
        """The pictures of those passes whose loss was not finite; where all were, of all passes."""
        keys: dict[str, None] = {}
        for entry in entries:
            passes = entry.numbers.tolist()[2:]
            guilty = [own for own, loss in zip(entry.keys, passes, strict=True) if not _is_finite(loss)]
            keys |= dict.fromkeys(key for own in guilty or entry.keys for key in own)
        known = {example.key: example for example in self._examples if example.key in keys}
        return [_named(key, known.get(key)) for key in keys]


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


def _named(key: str, example: Example | None) -> str:
    """A picture as a person finds it."""
    if example is None:
        return f"picture {key[:12]} (see data.json)"
    caption = printable(example.caption)
    shown = caption if len(caption) <= _CAPTION_SHOWN else f"{caption[:_CAPTION_SHOWN]}…"
    return f"{example.name} ({key[:12]}, {shown!r})"


def _is_finite(number: float) -> bool:
    return number - number == 0
