"""How far a long phase has come: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_NOTHING: Mapping[str, str] = {}
_SECONDS_BETWEEN_LINES = 10.0
_MEMORY = 30  # the speed is that of about the last so many reports


class Phases(ABC):
    """Shows how far each long phase has come; called as (what is being done, how many are done, how many there are).

    A phase begins with its first report, and again when its number falls; what was done before, as by a run that is
    resumed, does not count for the speed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._speeds: dict[str, Speed] = {}

    def __call__(self, title: str, done: int, total: int, facts: Mapping[str, str] = _NOTHING) -> None:
        """`done` of `total` are done; `facts` are what is worth showing now, such as {"loss": "0.113"}."""
        speed = self._speeds.get(title)
        if speed is None or done < speed.done:
            speed = self._speeds[title] = Speed(done, self._clock())
        speed.note(done, self._clock())
        self.show(title, total, speed, "  ".join(f"{name} {value}" for name, value in facts.items()))

    @abstractmethod
    def show(self, title: str, total: int, speed: "Speed", facts: str) -> None:
        """Make it visible."""


@contextmanager
def phases(*, quiet: bool = False, stream: TextIO | None = None) -> Generator[Phases, None, None]:
    """Something that shows how far phases have come, until the block is left.

    Args:
        quiet: show nothing; for all processes but the first.
        stream: where to; standard error unless said.
    """
    out: TextIO = stream or sys.stderr
    if quiet:
        yield Silence()
    elif out.isatty():
        with _rich(out) as rich:
            yield Bars(rich)
    else:
        yield Lines(out)


class Speed:
    """How fast one phase goes, smoothed over its last reports."""

    def __init__(self, done: int, now: float) -> None:
        self.done = done
        self.started = self.last = now
        self.seconds_each: float | None = None

    def note(self, done: int, now: float) -> None:
        """`done` are done at `now` seconds."""
        if done <= self.done:
            return
        new = (now - self.last) / (done - self.done)
        old = self.seconds_each
        self.seconds_each = new if old is None else old + (new - old) / _MEMORY
        self.done, self.last = done, now

    def __str__(self) -> str:
        """The speed as a person reads it: how many a second, or how long each where it is slow."""
        if not self.seconds_each:
            return "-/s"
        return f"{1 / self.seconds_each:.1f}/s" if self.seconds_each < 1 else f"{self.seconds_each:.1f}s each"

    def ending(self, total: int) -> str:
        """The time left, or the time it took."""
        if self.done >= total:
            return f"in {duration(self.last - self.started)}"
        return "- left" if self.seconds_each is None else f"{duration(self.seconds_each * (total - self.done))} left"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class Silence(Phases):
    """Shows nothing."""

    def show(self, title: str, total: int, speed: Speed, facts: str) -> None:
        """See `Phases.show`."""


class Lines(Phases):
    """One line at the beginning of a phase, at its end, and every ten seconds between."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._stream = stream
        self._written: dict[str, tuple[Speed, float]] = {}

    def show(self, title: str, total: int, speed: Speed, facts: str) -> None:
        """See `Phases.show`."""
        before, when = self._written.get(title, (None, 0.0))
        now = self._clock()
        if before is speed and speed.done < total and now - when < _SECONDS_BETWEEN_LINES:
            return
        self._written[title] = (speed, now)
        share = 100 * speed.done // total if total else 100
        words = [f"{title}: {speed.done}/{total}", f"{share}%", str(speed), speed.ending(total), facts]
        self._stream.write("  ".join(word for word in words if word) + "\n")
        self._stream.flush()


class Bars(Phases):
    """One bar a phase, which redraws itself."""

    def __init__(self, rich: "RichProgress") -> None:
        super().__init__()
        self._rich = rich
        self._tasks: dict[str, TaskID] = {}

    def show(self, title: str, total: int, speed: Speed, facts: str) -> None:
        """See `Phases.show`."""
        if title not in self._tasks:
            self._tasks[title] = self._rich.add_task(title, words="")
        words = f"{speed}  {speed.ending(total)}  {facts}"
        self._rich.update(self._tasks[title], completed=speed.done, total=total, words=words)


def _rich(stream: TextIO) -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        console=Console(file=stream),
    )
