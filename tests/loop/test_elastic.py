"""A worker that dies is started again and the run goes on; a signal to the launcher saves once, all together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from trainer.beginning import run_folder_of
from trainer.core.events import read_events
from trainer.core.tensors import read_tensors
from trainer.loop.agreeing import Agreement
from trainer.loop.checkpoints import Checkpoints
from trainer.loop.stopping import Stopper
from trainer.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
CHANGES: dict[str, Any] = {"batch": 1, "optimizer": {"kind": "adamw", "rate": 0.001}, "adapter": {"rank": 4}}


def launch(recipe: Path, *words: str, restarts: int = 0) -> "subprocess.Popen[str]":
    """Two workers under torch's own launcher."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", str(restarts)]
    command = [sys.executable, "-m", *launcher, "-m", "trainer", "train", str(recipe), *words]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_step(recipe: Recipe, step: int, launcher: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 600
    while launcher.poll() is None and time.monotonic() < deadline:
        if any(
            event["kind"] == "step" and event["step"] >= step for event in read_events(run_folder_of(recipe).events)
        ):
            return
        time.sleep(0.05)
    raise AssertionError(launcher.communicate(timeout=60)[0])


def worker(launcher: "subprocess.Popen[str]", rank: int) -> psutil.Process:
    for child in psutil.Process(launcher.pid).children():
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError("there is no such worker")


def losses(recipe: Recipe) -> list[float]:
    return [event["loss"] for event in read_events(run_folder_of(recipe).events) if event["kind"] == "step"]


def kept(recipe: Recipe, step: int) -> dict[str, Tensor]:
    files = sorted(run_folder_of(recipe).checkpoint(step).glob("*.safetensors"))
    return {f"{file.stem} {name}": tensor for file in files for name, tensor in read_tensors(file).items()}


@pytest.mark.slow
def test_a_run_outlives_its_workers_and_hears_signals_as_one(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """One way through a run of two workers: the launcher is told to stop; later a worker is killed; then it ends."""
    changes = CHANGES | {"steps": 80, "checkpoints": {"every": 5, "keep": 100}}
    recipe = recipe_of("unbroken", **changes)
    unbroken = launch(tmp_path / "unbroken.yaml", "--resume", "auto")  # nothing to resume: it begins
    said, _ = unbroken.communicate(timeout=900)
    assert unbroken.returncode == 0, said

    broken = tmp_path / "again"
    stopped = launch(tmp_path / "unbroken.yaml", "--resume", "auto", f"runs={broken}")
    again = recipe.model_copy(update={"runs": broken})
    folder = run_folder_of(again)
    wait_for_step(again, 5, stopped)
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode != 0
    assert "Stopped after step" in said
    at = Checkpoints(folder, recipe.checkpoints).newest()
    assert at is not None
    steps = [event["step"] for event in read_events(folder.events) if event["kind"] == "step"]
    assert at.step == steps[-1]  # saved where it stopped

    killed = launch(tmp_path / "unbroken.yaml", "--resume", "auto", f"runs={broken}", restarts=2)
    wait_for_step(again, at.step + 8, killed)
    worker(killed, 1).kill()
    said, _ = killed.communicate(timeout=900)
    assert killed.returncode == 0, said
    assert "Done." in said
    assert losses(again) == losses(recipe)
    ours, theirs = kept(again, 80), kept(recipe, 80)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert folder.result.read_bytes() == run_folder_of(recipe).result.read_bytes()


def test_one_process_asks_itself() -> None:
    stopper = Stopper()
    with Agreement(stopper, 1) as signals:
        assert signals.asked is None
        stopper.asked = signal.SIGTERM
        assert signals.asked == signal.SIGTERM
        signals.exchange()
        assert signals.asked == signal.SIGTERM


TWO = """
import sys, torch
from trainer.loop.agreeing import Agreement
from trainer.loop.stopping import Stopper
rank, meeting = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
stopper, steps = Stopper(), 0
with Agreement(stopper, 2) as signals:
    while signals.asked is None:
        steps += 1
        if rank == 1 and steps == 2:
            stopper.asked = 2
        signals.exchange()
print(steps, signals.asked)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    """The second of two hears a signal after its second step; all have heard of it after the third."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(tmp_path / "meeting")],
            env=variables, stdout=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    assert [one.communicate(timeout=300)[0].split() for one in both] == [["3", "2"], ["3", "2"]]
