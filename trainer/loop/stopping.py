"""Stop politely: a signal ends the run at the next clean point, with everything saved; a second one ends it at once."""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Final, NoReturn

import psutil
from typing_extensions import Self, override

from trainer.core.log import logger
from trainer.core.progress import Phases, Speed

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_AS_ONE: Final = 1.0  # seconds: torchrun, `timeout` and terminals tell a process the same thing twice
_TIMERS: Final = os.name != "nt"
_NOTHING: Final[Mapping[str, str]] = {}


class Stopped(BaseException):
    """The run was stopped by a signal, and everything is saved that can be gone on from.

    The user asked for it: it is no error, and nobody's `except Exception` takes it for one.
    """

    def __init__(self, number: int, *, finished: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        self.finished = finished  # the signal came so late that the run is done


class Stopper:
    """Between entering and leaving, the first SIGINT or SIGTERM is noted; the second one ends the process at once.

    Who trains looks at `asked` after each step. Whoever does other things says with `interruptible` how long they may
    go on.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal's number
        self._when = 0.0
        self._patience: float | None = None  # seconds from the signal on; None: what is done now is not interrupted
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] - what signal.signal gave us

    @contextmanager
    def interruptible(self, patience: float) -> Generator[None, None, None]:
        """Inside, a signal ends what is done: at its next clean point, or where it is after `patience` seconds.

        To be used around work that may be ended anywhere, since what it keeps is written whole or not at all. Where the
        system has no timers (Windows), it ends at once. A signal that came before counts from here.

        Raises:
            Stopped: a signal came.
        """
        with self._ended(patience, self._out_of_patience):
            if self.asked is not None:
                self._wait_no_longer(patience)
            yield

    @contextmanager
    def limited(self, seconds: float) -> Generator[None, None, None]:
        """Inside, a signal ends what is done where it is, and so do `seconds`, where the system has timers.

        Raises:
            Stopped: a signal came.
            TimeoutError: it took too long.
        """
        with self._ended(0, _too_late):
            self.look()
            if _TIMERS:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            yield

    def look(self) -> None:
        """Here is a clean point.

        Raises:
            Stopped: a signal came, and what is done may be interrupted.
        """
        if self.asked is not None and self._patience is not None:
            raise Stopped(self.asked)

    @contextmanager
    def _ended(self, patience: float, at_alarm: Callable[[int, FrameType | None], None]) -> Generator[None, None, None]:
        """Inside, a signal ends what is done after `patience` seconds, and the timer calls `at_alarm`."""
        before = signal.signal(signal.SIGALRM, at_alarm) if _TIMERS else None
        self._patience = patience
        try:
            yield
        finally:
            self._patience = None
            if _TIMERS:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is not None:
            if now - self._when > _AS_ONE:
                _end_at_once(number)
            return
        self.asked, self._when = number, now
        if self._patience is None:
            logger.warning("Stopping after this step; once more stops at once, without saving.")
            return
        logger.warning("Stopping; once more stops at once.")
        self._wait_no_longer(self._patience)

    def _wait_no_longer(self, seconds: float) -> None:
        if seconds > 0 and _TIMERS:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        else:
            self.look()

    def _out_of_patience(self, _number: int, _frame: FrameType | None) -> None:
        self.look()


class Watched(Phases):
    """Shows what another shows, and lets each report be a clean point to stop at."""

    def __init__(self, within: Phases, stopper: Stopper) -> None:
        super().__init__()
        self._within = within
        self._stopper = stopper

    @override
    def __call__(self, title: str, done: int, total: int, facts: Mapping[str, str] = _NOTHING) -> None:
        self._within(title, done, total, facts)
        self._stopper.look()

    @override
    def show(self, title: str, total: int, speed: Speed, facts: str) -> None:
        """See `Phases.show`."""
        self._within.show(title, total, speed, facts)


def _too_late(_number: int, _frame: FrameType | None) -> NoReturn:
    raise TimeoutError


def _end_at_once(number: int) -> NoReturn:
    """End this process and those that it has started, without another deed: the person has asked twice."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # gone already
            child.kill()
    if sys.stderr.isatty():
        with suppress(OSError):
            os.write(2, b"\x1b[?25h\n")  # a progress bar has hidden the cursor
    os._exit(128 + number)
