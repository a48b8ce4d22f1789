"""Stop politely: a signal ends the run after the step, with everything saved."""

import signal
from types import FrameType, TracebackType

from typing_extensions import Self

from trainer.core.log import logger

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - the user asked for it: no error
    """The run was stopped by a signal and everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Stopper:
    """Between entering and leaving, the first SIGINT or SIGTERM is noted; the second one ends the process at once."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal's number
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = number
        self._restore()
        logger.warning("Stopping after this step; once more stops at once, without saving.")

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] - what signal.signal gave us
