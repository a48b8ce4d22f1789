"""The events file: valid JSON always, torn lines survived, one story after a resume."""

import json
import logging
from pathlib import Path

import pytest

from trainer.core.events import EventsFile, read_events


def steps(path: Path, count: int) -> EventsFile:
    events = EventsFile(path)
    for step in range(1, count + 1):
        events.append("step", step, {"loss": 1 / step})
    return events


def test_an_event_is_on_the_system_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventsFile(path).append("step", 1, {"loss": 0.5, "file": Path("a") / "b.png", "captions": ["größe \n \u2028"]})
    assert path.read_text(encoding="utf-8").count("\n") == 1
    expected = {"kind": "step", "step": 1, "loss": 0.5, "file": "a/b.png", "captions": ["größe \n \u2028"]}
    assert read_events(path) == [expected]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_become_null(tmp_path: Path, number: float) -> None:
    path = tmp_path / "events.jsonl"
    EventsFile(path).append("step", 1, {"loss": number, "parts": {"unet": [number, 1.0]}})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    event = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert event["loss"] is None
    assert event["parts"] == {"unet": [None, 1.0]}


def test_there_are_no_events_without_a_file(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == []


@pytest.mark.parametrize("torn", ['{"kind": "step", "st', "[1, 2]\n", "\xff\n", '{"kind": 3, "step": 1}\n', "\n"])
def test_a_torn_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "events.jsonl"
    steps(path, 2)
    path.write_bytes(path.read_bytes() + torn.encode("latin-1"))
    assert [event["step"] for event in read_events(path)] == [1, 2]


@pytest.mark.parametrize("torn", ["", '{"kind": "step", "st'])
def test_after_a_resume_the_file_tells_one_story(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "events.jsonl"
    events = steps(path, 5)
    events.append("checkpoint", 3, {"path": "step-000003"})
    events.append("preview", 4, {})
    events.append("done", 3, {})
    path.write_bytes(path.read_bytes() + torn.encode())
    resumed = EventsFile.resumed(path, 3)
    told = [(event["kind"], event["step"]) for event in read_events(path)]
    assert told == [("step", 1), ("step", 2), ("step", 3), ("checkpoint", 3)]
    resumed.append("step", 4, {"loss": 9.0})
    assert read_events(path)[-1] == {"kind": "step", "step": 4, "loss": 9.0}
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_a_fresh_run_has_a_fresh_story(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventsFile.resumed(path, 0)
    assert not path.exists()
    steps(path, 3)
    EventsFile.resumed(path, 0)
    assert read_events(path) == []


def test_a_story_that_needs_no_change_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    steps(path, 3)
    before = path.stat().st_ino, path.read_bytes()
    EventsFile.resumed(path, 3)
    assert (path.stat().st_ino, path.read_bytes()) == before


def test_a_full_disk_is_one_warning_and_the_next_line_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "folder" / "events.jsonl"
    events = EventsFile(path)
    with caplog.at_level(logging.WARNING, logger="trainer"):
        events.append("step", 1, {})
        events.append("step", 2, {})
    assert len(caplog.records) == 1
    path.parent.mkdir()
    path.write_text('{"kind": "step", "st', encoding="utf-8")  # what a full disk leaves
    events.append("step", 3, {})
    events.append("step", 4, {})
    assert [event["step"] for event in read_events(path)] == [3, 4]
