"""All that a run tells: to its events file at once, to its trackers as fast as they can take it."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Full, Queue
from typing import TypeGuard

from typing_extensions import Self

from trainer.core.events import EventsFile
from trainer.core.log import logger
from trainer.core.redacting import redacted, redacted_text
from trainer.core.run_folder import RunFolder
from trainer.tracking.tracker import Table, Tracker, TrackerSettings

Show = Callable[[int, Mapping[str, str]], None]
"""Shows a person how many steps are done, and what is worth knowing, such as {"loss": "0.113"}."""

_CAPACITY = 1000  # records that may wait for one tracker
_PATIENCE = 120.0  # seconds that a tracker may need for one record


class Trackers:
    """Tells everybody; nobody who listens can stop or slow the run."""

    def __init__(self, events: EventsFile | None, lanes: Sequence["Lane"], folder: RunFolder, show: Show) -> None:
        self._events = events  # None: this process is not the one that tells
        self._lanes = list(lanes)
        self._folder = folder
        self._show = show
        self._step = 0  # the last step of which something was told

    @classmethod
    def open(
        cls,
        settings: Sequence[TrackerSettings],
        folder: RunFolder,
        config: Mapping[str, object],
        *,
        step: int,
        main: bool = True,
        show: Show = lambda step, facts: None,
    ) -> Self:
        """The trackers of a run that goes on after `step` steps; what was told of later steps is void.

        Args:
            settings: the trackers that the recipe names.
            folder: the run's folder.
            config: the recipe as JSON; secrets and private paths are taken out here.
            step: 0 for a fresh run.
            main: whether this is the one process of the run that tells.
            show: shows the progress of the training to a person.

        Raises:
            RecipeError: a tracker's package is not installed.
        """
        if not main:
            return cls(None, [], folder, show)
        events = EventsFile.resumed(folder.events, step)
        clean = redacted(config)
        lanes = [Lane(type(setting).__name__, setting.open(folder, clean, step)) for setting in settings]
        return cls(events, lanes, folder, show)

    def step(self, step: int, *, loss: float, rates: Mapping[str, float], seconds: float, peak_bytes: int) -> None:
        """A step is whole.

        Args:
            step: how many are whole now.
            loss: the mean over the step's examples.
            rates: the learning rate of each part in the step; `rate` is the first one's, and where there are more,
                `rate_unet`, `rate_te1`, ... are told beside it.
            seconds: how long it took.
            peak_bytes: the most memory used so far.
        """
        rate = next(iter(rates.values()))
        of_parts = {f"rate_{part}": value for part, value in rates.items()} if len(rates) > 1 else {}
        self.event("step", step, loss=loss, rate=rate, **of_parts, seconds=seconds, peak_bytes=peak_bytes)
        self._show(step, {"loss": f"{loss:.4f}", "rate": f"{rate:.2e}", "memory": f"{peak_bytes / (1 << 30):.1f} GiB"})

    def event(self, kind: str, step: int, **facts: object) -> None:
        """Something happened after `step` steps; its numbers go to the trackers too, as `kind/name`."""
        if self._events is None:
            return
        self._step = step
        self._events.append(kind, step, facts)
        group = "train" if kind == "step" else kind
        numbers = {f"{group}/{name}": number for name, number in _numbers(facts)}
        if numbers:
            self._send(step, lambda tracker: tracker.scalars(step, numbers))

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Pictures were drawn after `step` steps, into files of the run's folder."""
        if self._events is None:
            return
        files = {name: _within(path, self._folder.root) for name, path in pictures.items()}
        self._events.append("preview", step, {"pictures": files})
        self._send(step, lambda tracker: tracker.pictures(step, pictures))

    def table(self, step: int, name: str, table: Table) -> None:
        """There is a table to show after `step` steps; the run folder holds what it is made from."""
        if self._events is not None:
            self._send(step, lambda tracker: tracker.table(step, name, table))

    def warn(self, step: int, message: str) -> None:
        """Something is wrong that the user should know and that does not stop the run."""
        logger.warning("%s", message)
        if self._events is not None:
            self._events.append("warning", step, {"message": message})

    def close(self, seconds: float = 5.0) -> None:
        """Wait until everything is shown, but at most so many seconds altogether."""
        deadline = time.monotonic() + seconds
        for lane in self._lanes:
            lane.finish()
        for lane in self._lanes:
            lane.wait(max(0.0, deadline - time.monotonic()))
            if lane.failure is not None:
                self.warn(self._step, f"The tracker {lane.name} did not take everything: {lane.failure}.")
        self._lanes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, step: int, deed: Callable[[Tracker], None]) -> None:
        for lane in list(self._lanes):
            lane.send(deed)
            if lane.failure is not None:
                self._lanes.remove(lane)
                self.warn(step, f"The tracker {lane.name} is given up: {lane.failure}. Training goes on without it.")


class Lane:
    """One tracker in a thread of its own, behind a queue of bounded length."""

    def __init__(self, name: str, tracker: Tracker, *, capacity: int = _CAPACITY, patience: float = _PATIENCE) -> None:
        self.name = name
        self.failure: str | None = None  # why this tracker is of no use any more
        self._tracker = tracker
        self._patience = patience
        self._busy_since: float | None = None
        self._deeds: Queue[Callable[[Tracker], None] | None] = Queue(capacity)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def send(self, deed: Callable[[Tracker], None] | None) -> None:
        """Let the tracker do `deed` when it has time; None ends the thread. Never waits; may set `failure`."""
        if self.failure is not None:
            return
        since = self._busy_since
        try:
            self._deeds.put_nowait(deed)
        except Full:
            self._give_up(f"{self._deeds.maxsize} records wait for it")
        if since is not None and time.monotonic() - since > self._patience:
            self._give_up(f"it has not answered for {self._patience:.0f} seconds")

    def finish(self) -> None:
        """Nothing more will be sent."""
        self.send(lambda tracker: tracker.close())
        self.send(None)

    def wait(self, seconds: float) -> None:
        """Wait until all is done, or until so many seconds have passed; may set `failure`."""
        self._thread.join(seconds)
        if self._thread.is_alive() and self.failure is None:
            self.failure = "it is still busy at the end of the run"

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self._tracker.abandon()

    def _work(self) -> None:
        while (deed := self._deeds.get()) is not None:
            self._busy_since = time.monotonic()
            try:
                deed(self._tracker)
            except Exception as error:  # noqa: BLE001 -- whatever another's code raises, the run goes on
                logger.debug("The tracker %s failed.", self.name, exc_info=True)
                self._give_up(redacted_text(str(error).strip(" .\n")) or type(error).__name__)
                return
            self._busy_since = None


def _numbers(facts: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """The finite numbers among the facts by name; those of a list as `name/1`, `name/2`, and so on."""
    for name, value in facts.items():
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
        for key, one in [(name, value), *((f"{name}/{place}", part) for place, part in enumerate(several, start=1))]:
            if _is_number(one):
                yield key, float(one)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _within(path: Path, root: Path) -> str:
    """`path` as it is called inside the run's folder."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
