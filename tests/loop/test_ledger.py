"""Steps are told in their order, late or at once, and never after one that was not finite."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.core.errors import NonFiniteError
from trainer.core.events import read_events
from trainer.core.run_folder import RunFolder
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


@pytest.mark.parametrize(
    ("loss", "norm", "passes", "named"),
    [
        (float("nan"), 1.0, (0.1, float("nan")), ["b"]),
        (0.1, float("inf"), (0.1, 0.2), ["a", "b"]),
    ],
)
def test_a_step_that_is_not_finite_ends_the_story(
    folder: RunFolder, slow: dict[str, int], loss: float, norm: float, passes: tuple[float, float], named: list[str]
) -> None:
    ledger = Ledger(Trackers.open((), folder, {}, step=0), CPU)
    enter(ledger, 1, 0.5, 1.0)
    enter(ledger, 2, loss, norm, passes)
    enter(ledger, 3, 0.5, 1.0)
    with pytest.raises(NonFiniteError, match="step 2") as caught:
        ledger.settle()
    assert told(folder) == [1]
    text: Any = caught.value.where
    assert [letter for letter in "ab" if letter * 12 in text] == named
    ledger.settle()  # what came after is void
    assert told(folder) == [1]
