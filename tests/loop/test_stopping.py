"""Signals end a run after the step, with everything saved, and the resumed run ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import psutil
import pytest

from trainer.assemble import assemble
from trainer.beginning import run_folder_of
from trainer.core.events import read_events
from trainer.core.progress import Silence
from trainer.loop.checkpoints import Checkpoints
from trainer.loop.stopping import Stopped, Stopper, Watched
from trainer.loop.train import train
from trainer.recipe.recipe import Recipe

QUIET = Silence()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stopper() as stopper:
        assert stopper.asked is None
        signal.raise_signal(number)
        assert stopper.asked == number
        signal.raise_signal(number)  # torchrun and `timeout` tell twice what they mean once
        stopper.look()  # what is not interruptible goes on
    assert signal.getsignal(number) == before


def test_a_phase_that_reports_stops_at_its_next_report() -> None:
    with Stopper() as stopper:
        watched = Watched(Silence(), stopper)
        with pytest.raises(Stopped) as stopped, stopper.interruptible(60.0):
            watched("reading", 1, 3)
            signal.raise_signal(signal.SIGTERM)
            watched("reading", 2, 3)
            pytest.fail("the report did not stop it")
        assert stopped.value.exit_code == 143
        watched("training", 1, 3)  # not a clean point any more


def test_a_phase_that_reports_nothing_stops_when_patience_ends() -> None:
    began = time.monotonic()
    with Stopper() as stopper, pytest.raises(Stopped), stopper.interruptible(0.2):
        signal.raise_signal(signal.SIGINT)
        Event().wait(30)
    assert 0.2 <= time.monotonic() - began < 10


def test_what_could_be_interrupted_is_over_when_it_ends() -> None:
    with Stopper() as stopper:
        with stopper.interruptible(0.05):
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        assert stopper.asked == signal.SIGINT


@pytest.mark.skipif(os.name == "nt", reason="no timers")
def test_what_is_limited_ends_when_it_takes_too_long_or_by_a_signal() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with Stopper() as stopper:
        with pytest.raises(TimeoutError), stopper.limited(0.05):
            Event().wait(20)
        with stopper.limited(0.05):
            pass
        time.sleep(0.1)  # nothing comes afterwards
        with pytest.raises(Stopped) as stopped, stopper.limited(20):
            os.kill(os.getpid(), signal.SIGTERM)
            Event().wait(20)
        assert stopped.value.exit_code == 143
        with pytest.raises(Stopped), stopper.limited(20):  # one that came before counts
            pass
    assert signal.getsignal(signal.SIGALRM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_the_process_and_its_children_at_once(number: signal.Signals, code: int) -> None:
    script = """
import subprocess, sys, time
from trainer.loop import stopping
stopping._AS_ONE = 0.1
with stopping.Stopper():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    try:
        time.sleep(60)
    finally:
        time.sleep(60)  # nothing of this is waited for
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=10) == code
    process.stdout.close()
    deadline = time.monotonic() + 5
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(child)


def _lives(number: int) -> bool:
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_saved_and_goes_on_to_the_same_bytes(
    recipe_of: Callable[..., Recipe], number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 4, "checkpoints": {"every": 0}}
    unbroken = assemble(recipe_of("unbroken", **changes), resume=False, progress=QUIET)
    with unbroken.trackers:
        whole = train(unbroken)

    recipe = recipe_of("broken", **changes)
    run = assemble(recipe, resume=False, progress=QUIET)
    tick = type(run.clock).tick

    def tick_and_signal(clock: object, pictures: int) -> None:
        tick(run.clock, pictures)
        if run.clock.step == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(type(run.clock), "tick", tick_and_signal)
    with pytest.raises(Stopped) as stopped, run.trackers:
        train(run)
    monkeypatch.undo()
    assert stopped.value.exit_code == code
    saved = Checkpoints(run_folder_of(recipe), recipe.checkpoints).newest()
    assert saved is not None
    assert saved.step == 2

    resumed = assemble(recipe, resume=True, progress=QUIET)
    with resumed.trackers:
        # names stand in the metadata: compare the tensors
        from trainer.core.tensors import read_tensors

        ours, theirs = read_tensors(train(resumed)), read_tensors(whole)
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)
    steps = [event["step"] for event in read_events(run_folder_of(recipe).events) if event["kind"] == "step"]
    assert steps == [1, 2, 3, 4]


def test_a_process_that_gets_sigterm_exits_143_and_resumes(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of("process", steps=3000, checkpoints={"every": 0})
    command = [sys.executable, "-m", "trainer", "train", str(tmp_path / "process.yaml")]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    events = run_folder_of(recipe).events
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if any(event["kind"] == "step" for event in read_events(events)):
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "--resume" in said
    assert Checkpoints(run_folder_of(recipe), recipe.checkpoints).newest() is not None


def test_a_signal_just_before_pictures_leaves_them_out(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is over, the pictures are due, and the signal is there already."""
    recipe = recipe_of("pictures", steps=3, previews={"prompts": ["red"], "every": 2})
    run = assemble(recipe, resume=False, progress=QUIET)
    due = type(run.clock).due

    def due_and_signal(clock: object, every: int) -> bool:
        if run.clock.step == 2 and every == 2:
            signal.raise_signal(signal.SIGINT)
        return due(run.clock, every)

    monkeypatch.setattr(type(run.clock), "due", due_and_signal)
    with pytest.raises(Stopped), run.trackers:
        train(run)
    assert not run_folder_of(recipe).previews(2).exists()
    saved = Checkpoints(run_folder_of(recipe), recipe.checkpoints).newest()
    assert saved is not None
    assert saved.step == 2
