"""The story of a run: one JSON object a line, in the order in which things happened."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from trainer.core.files import write_atomically
from trainer.core.log import logger

# What a line of JSON holds is only known when its kind is.
Event = dict[str, Any]


def read_events(path: Path) -> list[Event]:
    """The events in `path`, in order; none where there is no file.

    Lines that are no event are left out: the last one may be torn by a crash, or be read while it is written.
    """
    if not path.is_file():
        return []
    return [event for line in path.read_bytes().splitlines() if (event := _event(line)) is not None]


class EventsFile:
    """The events of one run, appended as they happen; each line reaches the system before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failing = False

    @classmethod
    def resumed(cls, path: Path, step: int) -> "EventsFile":
        """The events of a run that goes on after `step` steps.

        What happened after that step is dropped, for it will happen again, and so is word of an end: the file tells
        one story. It is rewritten as a whole, or not at all.
        """
        before = read_events(path)
        kept = [event for event in before if event["step"] <= step and event["kind"] != "done"]
        if kept != before or not _ends_well(path):
            write_atomically(path, "".join(_line(event) for event in kept))
        return cls(path)

    def append(self, kind: str, step: int, facts: Mapping[str, object]) -> None:
        """Add an event after `step` steps. Numbers that JSON does not have, NaN and the infinities, become null.

        A disk that takes no more is a warning, not an error: the run itself is worth more than its story.
        """
        line = _line({"kind": kind, "step": step, **facts})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # A failed attempt may have left half a line: end it, so that it spoils none but itself.
                file.write("\n" + line if self._failing else line)
            self._failing = False
        except OSError as error:
            if not self._failing:
                logger.warning("The events file cannot be written: %s.", error.strerror)
            self._failing = True


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("kind"), str) and type(event.get("step")) is int
    return event if is_event else None


def _ends_well(path: Path) -> bool:
    content = path.read_bytes() if path.is_file() else b""
    return not content or (content.endswith(b"\n") and all(_event(line) for line in content.splitlines()))


def _line(event: Mapping[str, object]) -> str:
    return json.dumps(_plain(event), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """`value` in the words that JSON has."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value
