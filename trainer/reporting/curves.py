"""Events -> the curves of a run, with no more points than a screen can show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.core.events import Event

_POINTS: Final = 1500  # of a curve; of longer ones, each point is the mean of some steps
_BANDS: Final = 8  # of noise, at most
_ROWS: Final = 13  # of the table beside a drawing
_GIBIBYTE: Final = 1 << 30
_ENDLESS: Final = 1e300  # what JSON may hold and no run has
_PART: Final = re.compile(r"[a-z0-9_]{1,24}")  # words of events become labels; others are not ours
_SHARE: Final = 0.05  # of the steps: those whose mean is the loss at the beginning and at the end

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a drawing."""

    label: str
    steps: Numbers  # [N], rising
    values: Numbers  # [N], NaN where there is none
    each: int = 1  # steps whose mean a point is
    noisy: bool = False  # is shown smoothed as well
    dotted: bool = False  # few points, each of which is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Curves over the same steps, in the same unit."""

    name: str  # one word
    title: str
    unit: str
    summary: str  # what it shows, for those who cannot see it
    curves: tuple[Curve, ...]

    def as_json(self) -> dict[str, object]:
        """What the page's script draws: all curves over one row of steps, null where a curve has no point."""
        steps = np.unique(np.concatenate([curve.steps for curve in self.curves]))
        columns: list[list[float | None]] = []
        for curve in self.curves:
            column = np.full(len(steps), np.nan)
            column[np.searchsorted(steps, curve.steps)] = curve.values
            columns.append([None if np.isnan(value) else float(f"{value:.5g}") for value in column])
        return {
            "name": self.name,
            "steps": steps.tolist(),
            "columns": columns,
            "lines": [{"label": one.label, "noisy": one.noisy, "dotted": one.dotted} for one in self.curves],
        }

    @property
    def rows(self) -> list[tuple[int, list[str]]]:
        """Some of its numbers as a table: the step, and each curve there."""
        longest = max(self.curves, key=lambda curve: len(curve.steps)).steps
        places = np.unique(np.linspace(0, len(longest) - 1, min(len(longest), _ROWS)).astype(np.int64))
        return [(int(step), [_near(curve, step) for curve in self.curves]) for step in longest[places]]


def drawings_of(events: Sequence[Event]) -> list[Drawing]:
    """The drawings of loss, rate, memory and time; none of what the events do not tell."""
    steps = [event for event in events if event["kind"] == "step"]
    held_out = [event for event in events if event["kind"] == "held_out"]
    curves = (
        _curve(steps, "loss", "training loss", noisy=True),
        _curve(held_out, "loss", "held-out loss", dotted=True),
    )
    loss = [curve for curve in curves if curve is not None]
    bands = [curve for place in range(_BANDS) if (curve := _band(held_out, place)) is not None]
    parts = sorted({key for event in steps[:1] for key in event if key.startswith("rate_") and _PART.fullmatch(key)})
    rates = [curve for key in parts or ["rate"] if (curve := _curve(steps, key, key.replace("_", " of ")))]
    memory = _curve(steps, "peak_bytes", "most memory so far", factor=1 / _GIBIBYTE)
    seconds = _curve(steps, "seconds", "time of a step", noisy=True)
    wanted = (
        ("loss", "Loss", "", loss),
        ("bands", "Held-out loss by bands of noise", "", bands),
        ("rate", "Learning rate", "", rates),
        ("memory", "Memory", "GiB", [memory] if memory is not None else []),
        ("seconds", "Time per step", "s", [seconds] if seconds is not None else []),
    )
    return [
        Drawing(name=name, title=title, unit=unit, summary=_summary(curves, unit), curves=tuple(curves))
        for name, title, unit, curves in wanted
        if curves
    ]


def ends_of(values: Numbers) -> tuple[float, float]:
    """The mean of the first and of the last twentieth of the values that are numbers."""
    known = values[~np.isnan(values)]
    count = max(1, round(len(known) * _SHARE))
    return float(known[:count].mean()), float(known[-count:].mean())


def numbers_of(events: Sequence[Event], key: str) -> tuple[Numbers, Numbers]:
    """Steps and values [N] of one key, in the order of steps; NaN where the event does not hold a finite number."""
    told = {event["step"]: _number(event.get(key)) for event in events}  # of one step, the last one counts
    steps = np.array(sorted(told), dtype=np.float64)
    return steps, np.array([told[int(step)] for step in steps], dtype=np.float64)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) >= _ENDLESS:
        return float("nan")
    return float(value)


def _band(events: Sequence[Event], place: int) -> Curve | None:
    """The held-out loss of one band of noise."""
    told: list[Event] = []
    for event in events:
        bands = event.get("bands")
        if isinstance(bands, list) and place < len(bands):
            told.append({"step": event["step"], "band": bands[place]})
    words = " (least noise)" if place == 0 else ""
    return _curve(told, "band", f"band {place + 1}{words}", dotted=True)


def _curve(
    events: Sequence[Event], key: str, label: str, *, factor: float = 1.0, noisy: bool = False, dotted: bool = False
) -> Curve | None:
    steps, values = numbers_of(events, key)
    if not (~np.isnan(values)).any():
        return None
    each = -(-len(steps) // _POINTS)
    if each > 1:
        steps, values = _middles(steps, each), _means(values, each)
    return Curve(label=label, steps=steps, values=values * factor, each=each, noisy=noisy, dotted=dotted)


def _middles(steps: Numbers, each: int) -> Numbers:
    return np.array([steps[at : at + each][len(steps[at : at + each]) // 2] for at in range(0, len(steps), each)])


def _means(values: Numbers, each: int) -> Numbers:
    """The mean of every `each` values, without those that are none."""
    starts = np.arange(0, len(values), each)
    sums = np.add.reduceat(np.nan_to_num(values), starts)
    counts = np.add.reduceat((~np.isnan(values)).astype(np.float64), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _near(curve: Curve, step: float) -> str:
    """The curve's value at a step, or at the last of its steps before; an empty text where there is none."""
    at = int(np.searchsorted(curve.steps, step, side="right")) - 1
    if at < 0 or np.isnan(curve.values[at]):
        return ""
    return f"{curve.values[at]:.4g}"


def _summary(curves: Sequence[Curve], unit: str) -> str:
    sentences: list[str] = []
    for curve in curves:
        first, last = ends_of(curve.values)
        after = f" {unit}" if unit else ""
        sentences.append(
            f"{curve.label}: {first:.4g}{after} at the beginning, {last:.4g}{after} at step {curve.steps[-1]:.0f}"
        )
    return "; ".join(sentences).capitalize() + "." if sentences else ""
