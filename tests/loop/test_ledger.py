"""Steps are told in their order, late or at once, and never after three that were not finite."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.core.errors import NonFiniteError
from trainer.core.events import read_events
from trainer.core.run_folder import RunFolder
from trainer.data.example import Example, Size
from trainer.loop import ledger as module
from trainer.loop.ledger import Ledger, Moment
from trainer.tracking.trackers import Trackers

CPU = torch.device("cpu")
KEYS = (("a" * 20,), ("b" * 20,))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def told(folder: RunFolder) -> list[int]:
    return [event["step"] for event in read_events(folder.events)]


def enter(ledger: Ledger, step: int, loss: float, norm: float, passes: tuple[float, float] = (0.1, 0.3)) -> None:
    ledger.enter(step, ledger.begin(), torch.tensor([loss, norm, *passes]), {"unet": 0.5}, KEYS)


def test_without_a_device_that_works_ahead_a_step_is_told_at_once(folder: RunFolder) -> None:
    ledger = Ledger(Trackers.open((), folder, {}, step=0), CPU)
    enter(ledger, 1, 0.25, 2.0)
    (event,) = read_events(folder.events)
    assert (event["step"], event["loss"], event["rate"]) == (1, 0.25, 0.5)
    assert event["seconds"] >= 0
    assert event["peak_bytes"] > 0


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A device that has done `done` steps of those that it was given, unless it is waited for."""
    state = {"done": 0, "given": 0, "waits": 0}

    class Late(Moment):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            self.number = state["given"]
            state["given"] += 1

        def passed(self, wait: bool) -> bool:
            state["waits"] += wait
            return wait or self.number < state["done"]

    monkeypatch.setattr(module, "Moment", Late)
    return state


def test_steps_of_a_device_that_works_ahead_are_told_in_their_order(folder: RunFolder, slow: dict[str, int]) -> None:
    ledger = Ledger(Trackers.open((), folder, {}, step=0), CPU, most=3)
    for step in range(1, 4):
        enter(ledger, step, 0.5, 1.0)
    assert told(folder) == []
    assert slow["waits"] == 0  # nothing waited for the device
    enter(ledger, 4, 0.5, 1.0)  # more than may be under way
    assert told(folder) == [1]
    slow["done"] = 1000
    enter(ledger, 5, 0.5, 1.0)
    assert told(folder) == [1, 2, 3, 4, 5]
    slow["done"] = 0
    enter(ledger, 6, 0.5, 1.0)
    ledger.settle()
    assert told(folder) == [1, 2, 3, 4, 5, 6]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("loss", "norm", "passes", "named"), [(NAN, 1.0, (0.1, NAN), ["b"]), (0.1, INF, (0.1, 0.2), ["a", "b"])]
)
def test_three_steps_in_a_row_that_are_not_finite_end_the_story(
    folder: RunFolder, slow: dict[str, int], loss: float, norm: float, passes: tuple[float, float], named: list[str]
) -> None:
    example = Example(source=0, locator="x", name="b.png", key=KEYS[1][0], size=Size(1, 1), captions=("a ball",))
    ledger = Ledger(Trackers.open((), folder, {}, step=0), CPU, examples=[example])
    enter(ledger, 1, 0.5, 1.0)
    for step in (2, 3, 4):
        enter(ledger, step, loss, norm, passes)
    enter(ledger, 5, 0.5, 1.0)
    with pytest.raises(NonFiniteError, match="steps 2 to 4") as caught:
        ledger.settle()
    assert caught.value.exit_code == 5
    assert told(folder) == [1, 2, 2, 3, 3]  # and a warning each
    text: Any = caught.value.where
    assert [letter for letter in "ab" if letter * 12 in text] == named
    assert "b.png" in text
    assert "a ball" in text
    ledger.settle()  # what came after is void
    assert told(folder) == [1, 2, 2, 3, 3]


def test_two_such_steps_in_a_row_are_passed_over_and_told(folder: RunFolder) -> None:
    ledger = Ledger(Trackers.open((), folder, {}, step=0), CPU)
    for step in range(1, 10):
        lost = step % 3 != 0
        enter(ledger, step, NAN if lost else 0.5, 1.0, (NAN, 0.2) if lost else (0.1, 0.2))
    events = read_events(folder.events)
    warnings = [event for event in events if event["kind"] == "warning"]
    assert [event["step"] for event in warnings] == [1, 2, 4, 5, 7, 8]
    assert "a" * 12 in warnings[0]["message"]
    assert [event["loss"] for event in events if event["kind"] == "step"] == [None, None, 0.5] * 3
    assert ledger.passed_over == 6


def test_overflows_of_a_scaled_loss_are_counted_and_end_where_scaling_cannot_be_their_cause(folder: RunFolder) -> None:
    ledger = Ledger(Trackers.open((), folder, {}, step=0), CPU, scaled=True)
    for step in range(1, 30):
        enter(ledger, step, 0.5, INF)
    assert ledger.passed_over == 29
    assert all(event["kind"] == "step" for event in read_events(folder.events))
    enter(ledger, 30, 0.5, 1.0)
    for step in range(31, 60):
        enter(ledger, step, 0.5, INF)
    with pytest.raises(NonFiniteError, match="step 60"):
        enter(ledger, 60, 0.5, INF)


def test_a_scaled_loss_that_is_not_finite_itself_counts_as_any(folder: RunFolder) -> None:
    ledger = Ledger(Trackers.open((), folder, {}, step=0), CPU, scaled=True)
    enter(ledger, 1, NAN, NAN)
    enter(ledger, 2, NAN, NAN)
    with pytest.raises(NonFiniteError, match="steps 1 to 3"):
        enter(ledger, 3, NAN, NAN)
