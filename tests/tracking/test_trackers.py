"""Nobody who listens can stop or slow the run."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from trainer.core.errors import RecipeError
from trainer.core.events import read_events
from trainer.core.run_folder import RunFolder
from trainer.tracking.tensorboard import TensorBoard
from trainer.tracking.tracker import Table, Tracker, TrackerSettings
from trainer.tracking.trackers import Lane, Trackers
from trainer.tracking.wandb import Wandb


class Listener(Tracker):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, dict(values)))

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        self.told.append((step, dict(pictures)))

    def table(self, step: int, name: str, table: Table) -> None:
        self.told.append((step, name, table))

    def close(self) -> None:
        self.told.append("closed")


class Raising(Listener):
    """Fails at the second record; its message carries a secret, as a web address in an error may."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == 2:
            raise ConnectionError("https://me:hf_aaaaaaaaaaaaaaaaaaaa@example.org refused\n")
        super().scalars(step, values)


class Hanging(Listener):
    """Never answers the second record, until it is abandoned."""

    def __init__(self) -> None:
        super().__init__()
        self.abandoned = threading.Event()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == 2:
            self.abandoned.wait(60)
        super().scalars(step, values)

    def abandon(self) -> None:
        self.abandoned.set()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "blob")
    folder.create()
    return folder


def trackers_with(folder: RunFolder, *lanes: Lane) -> Trackers:
    trackers = Trackers.open([], folder, {}, step=0)
    trackers._lanes.extend(lanes)  # pyright: ignore[reportPrivateUsage]  # a listener of the test is no recipe's
    return trackers


def take_steps(trackers: Trackers, count: int) -> float:
    """The seconds that telling `count` steps took."""
    began = time.monotonic()
    for step in range(1, count + 1):
        trackers.step(step, loss=1 / step, rates={"unet": 1e-3}, seconds=0.1, peak_bytes=1 << 30)
    return time.monotonic() - began


def warnings(folder: RunFolder) -> list[str]:
    return [event["message"] for event in read_events(folder.events) if event["kind"] == "warning"]


def test_everybody_is_told_in_order(folder: RunFolder) -> None:
    one, other = Listener(), Listener()
    with trackers_with(folder, Lane("one", one), Lane("other", other)) as trackers:
        trackers.step(1, loss=0.5, rates={"unet": 1e-3}, seconds=0.2, peak_bytes=7)
        trackers.event(
            "held_out", 1, loss=0.25, bands=[0.125, None, 0.5], pictures="all", whole=True, broken=float("nan")
        )
        trackers.pictures(1, {"grid": folder.previews(1) / "grid.png"})
        trackers.event("checkpoint", 1, path="step-000001")
        trackers.table(1, "data", TABLE)
    assert one.told == [
        (1, {"train/loss": 0.5, "train/rate": 1e-3, "train/seconds": 0.2, "train/peak_bytes": 7.0}),
        (1, {"held_out/loss": 0.25, "held_out/bands/1": 0.125, "held_out/bands/3": 0.5}),
        (1, {"grid": folder.previews(1) / "grid.png"}),
        (1, "data", TABLE),
        "closed",
    ]
    assert other.told == one.told
    events = read_events(folder.events)
    assert events[0] == {"kind": "step", "step": 1, "loss": 0.5, "rate": 1e-3, "seconds": 0.2, "peak_bytes": 7}
    assert events[1]["broken"] is None
    assert events[2] == {"kind": "preview", "step": 1, "pictures": {"grid": "previews/step-000001/grid.png"}}
    assert events[3] == {"kind": "checkpoint", "step": 1, "path": "step-000001"}


def test_each_part_s_rate_is_told_where_there_are_several(folder: RunFolder) -> None:
    listener = Listener()
    with trackers_with(folder, Lane("one", listener)) as trackers:
        trackers.step(1, loss=0.5, rates={"unet": 1e-3, "te1": 5e-5}, seconds=0.2, peak_bytes=7)
    event = read_events(folder.events)[0]
    assert {key: event[key] for key in event if key.startswith("rate")} == {
        "rate": 1e-3,
        "rate_unet": 1e-3,
        "rate_te1": 5e-5,
    }
    numbers = {"loss": 0.5, "rate": 1e-3, "rate_unet": 1e-3, "rate_te1": 5e-5, "seconds": 0.2, "peak_bytes": 7.0}
    assert listener.told[0] == (1, {f"train/{name}": number for name, number in numbers.items()})


def test_the_person_is_shown_loss_rate_and_memory(folder: RunFolder) -> None:
    shown: list[tuple[int, dict[str, str]]] = []
    with Trackers.open([], folder, {}, step=0, show=lambda step, facts: shown.append((step, dict(facts)))) as trackers:
        trackers.step(3, loss=0.12345, rates={"unet": 1e-3}, seconds=0.2, peak_bytes=3 << 29)
    assert shown == [(3, {"loss": "0.1235", "rate": "1.00e-03", "memory": "1.5 GiB"})]


def test_a_tracker_that_raises_is_dropped_with_one_warning_and_the_others_go_on(folder: RunFolder) -> None:
    raising, healthy = Raising(), Listener()
    with trackers_with(folder, Lane("Raising", raising), Lane("healthy", healthy)) as trackers:
        take_steps(trackers, 2)
        time.sleep(0.2)
        take_steps(trackers, 50)
    assert len(healthy.told) == 53
    assert len(raising.told) == 1
    (message,) = warnings(folder)
    assert "Raising is given up" in message
    assert "refused" in message
    assert "hf_" not in message
    assert len([event for event in read_events(folder.events) if event["kind"] == "step"]) == 52


def test_a_tracker_that_hangs_costs_no_time_and_is_dropped(folder: RunFolder) -> None:
    hanging, healthy = Hanging(), Listener()
    lanes = Lane("Hanging", hanging, patience=0.3), Lane("healthy", healthy)
    with trackers_with(folder, *lanes) as trackers:
        assert take_steps(trackers, 20) < 0.25
        assert not hanging.abandoned.is_set()
        time.sleep(0.4)
        take_steps(trackers, 3)
        assert hanging.abandoned.is_set()
    assert len(healthy.told) == 24
    (message,) = warnings(folder)
    assert "not answered" in message


def test_a_full_queue_gives_its_tracker_up(folder: RunFolder) -> None:
    hanging = Hanging()
    with trackers_with(folder, Lane("Hanging", hanging, capacity=5)) as trackers:
        take_steps(trackers, 30)
    (message,) = warnings(folder)
    assert "5 records wait" in message


def test_closing_waits_a_few_seconds_altogether(folder: RunFolder) -> None:
    ones = [Hanging(), Hanging(), Hanging()]
    trackers = trackers_with(folder, *(Lane(f"number {place}", one) for place, one in enumerate(ones)))
    take_steps(trackers, 3)
    began = time.monotonic()
    trackers.close(seconds=0.4)
    assert time.monotonic() - began < 1.0
    assert len(warnings(folder)) == 3
    for one in ones:
        one.abandoned.set()


def test_a_resumed_run_tells_one_story(folder: RunFolder) -> None:
    with Trackers.open([], folder, {}, step=0) as trackers:
        take_steps(trackers, 5)
    with Trackers.open([], folder, {}, step=3) as trackers:
        trackers.step(4, loss=9, rates={"unet": 1}, seconds=1, peak_bytes=1)
    assert [(event["step"], event["loss"]) for event in read_events(folder.events)][-2:] == [(3, 1 / 3), (4, 9)]


def test_only_the_first_process_tells(folder: RunFolder) -> None:
    with Trackers.open([Wandb()], folder, {}, step=0, main=False) as trackers:
        take_steps(trackers, 2)
        trackers.pictures(1, {"grid": folder.previews(1) / "grid.png"})
        trackers.warn(1, "something")
    assert list(folder.root.iterdir()) == []


@pytest.mark.parametrize("settings", [TensorBoard(), Wandb(mode="offline")], ids=lambda s: s.kind)
def test_a_missing_package_is_said_before_the_run(
    settings: TrackerSettings, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.tracking.tracker.find_spec", dict[str, object]().get)
    with pytest.raises(RecipeError, match="not installed"):
        Trackers.open([settings], folder, {}, step=0)


TABLE = Table(("files", "number"), (("accepted | <b>", 5), ("rejected", None)))
CONFIG: dict[str, object] = {
    "name": "blob",
    "sources": [{"path": "/home/alice/secret-project/pictures"}],
    "hub_token": "swordfish-7",
    "rank": 16,
}
MARKERS = ["alice", "secret-project", "swordfish-7", "b" * 40, "an-argument-of-the-command-line"]


def tell_a_little(settings: TrackerSettings, folder: RunFolder) -> None:
    sheet = folder.previews(2) / "grid.png"
    sheet.parent.mkdir(parents=True)
    Image.new("RGB", (32, 16), (200, 30, 40)).save(sheet)
    with Trackers.open([settings], folder, CONFIG, step=0) as trackers:
        trackers.table(0, "data", TABLE)
        take_steps(trackers, 2)
        trackers.event("held_out", 2, loss=0.25, bands=[0.125, 0.375])
        trackers.pictures(2, {"grid": sheet, "preview/1": sheet})
        trackers.close(seconds=40)
    assert warnings(folder) == []


def go_on(settings: TrackerSettings, folder: RunFolder) -> None:
    """The run goes on after its first step: the second one comes again, as it was."""
    with Trackers.open([settings], folder, CONFIG, step=1) as trackers:
        for step in (2, 3):
            trackers.step(step, loss=1 / step, rates={"unet": 1e-3}, seconds=0.1, peak_bytes=1 << 30)
        trackers.close(seconds=40)
    assert warnings(folder) == []


def test_tensorboard_reads_what_was_told(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell_a_little(TensorBoard(), folder)
    told = EventAccumulator(str(folder.root / "tensorboard"))
    told.Reload()
    assert [(event.step, event.value) for event in told.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    for name in ("grid", "preview/1"):
        (picture,) = told.Images(name)
        assert (picture.step, picture.width, picture.height) == (2, 32, 16)
    assert [(event.step, event.value) for event in told.Scalars("held_out/loss")] == [(2, 0.25)]
    assert [event.value for event in told.Scalars("held_out/bands/2")] == [0.375]
    (table,) = told.Tensors("data/text_summary")
    (text,) = table.tensor_proto.string_val
    assert text.decode() == "| files | number |\n| --- | --- |\n| accepted &#124; &lt;b> | 5 |\n| rejected |  |"
    written = b"".join(file.read_bytes() for file in (folder.root / "tensorboard").iterdir())
    assert b'"rank": 16' in written
    assert not [marker for marker in MARKERS if marker.encode() in written]


def test_tensorboard_goes_on_where_the_run_does(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell_a_little(TensorBoard(), folder)
    go_on(TensorBoard(), folder)
    told = EventAccumulator(str(folder.root / "tensorboard"))
    told.Reload()
    assert [event.step for event in told.Scalars("train/loss")] == [1, 2, 3]


def test_wandb_goes_on_with_the_same_run(folder: RunFolder) -> None:
    tell_a_little(Wandb(mode="offline"), folder)
    go_on(Wandb(mode="offline"), folder)
    histories = [file for file in (folder.root / "wandb").rglob("*.wandb") if not file.parent.is_symlink()]
    identity = (folder.root / "wandb" / "run-id.txt").read_text(encoding="utf-8")
    assert [file.name for file in histories] == [f"run-{identity}.wandb"] * 2
    assert all(b"train/loss" in file.read_bytes() for file in histories)


def test_wandb_works_offline_and_keeps_to_the_run_folder(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_API_KEY", "b" * 40)
    monkeypatch.setattr(sys, "argv", ["trainer", "an-argument-of-the-command-line"])
    tell_a_little(Wandb(mode="offline"), folder)
    files = [file for file in (folder.root / "wandb").rglob("*") if file.is_file()]
    (history,) = [file for file in files if file.suffix == ".wandb"]
    for words in (b"train/loss", b"held_out/loss", b"held_out/bands/2", b"rank", b"preview/1", b"table-file"):
        assert words in history.read_bytes()
    media = [file for file in files if "media" in file.parts]
    assert sorted(file.suffix for file in media) == [".json", ".png", ".png"]
    (table,) = [json.loads(file.read_bytes()) for file in media if file.suffix == ".json"]
    assert table["columns"] == ["files", "number"]
    assert table["data"] == [["accepted | <b>", 5], ["rejected", None]]
    contents = {file: file.read_bytes() for file in files}
    assert not [(file, marker) for file in files for marker in MARKERS if marker.encode() in contents[file]]
    assert not [file for file in home.rglob("*") if file.is_file()]


@pytest.mark.slow
def test_a_server_that_never_answers_does_not_hold_the_process(folder: RunFolder) -> None:
    """The whole process ends: wandb's own hooks would hold it until their time limits."""
    server = socket.create_server(("127.0.0.1", 0))
    script = """
import sys
from pathlib import Path
from trainer.core.run_folder import RunFolder
from trainer.tracking.trackers import Trackers
from trainer.tracking.wandb import Wandb
with Trackers.open([Wandb()], RunFolder(Path(sys.argv[1])), {}, step=0) as trackers:
    for step in range(1, 200):
        trackers.step(step, loss=1.0, rates={"unet": 1.0}, seconds=1.0, peak_bytes=1)
"""
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "b" * 40}
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script, str(folder.root)], env=environment, check=True, timeout=60)
    assert time.monotonic() - began < 30
    assert len([event for event in read_events(folder.events) if event["kind"] == "step"]) == 199
    assert "still busy" in warnings(folder)[0]
    server.close()


def test_a_login_that_is_missing_is_one_warning(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Trackers.open([Wandb(mode="online")], folder, {}, step=0) as trackers:
        take_steps(trackers, 2)
        trackers.close(seconds=40)
    (message,) = warnings(folder)
    assert "API key" in message
