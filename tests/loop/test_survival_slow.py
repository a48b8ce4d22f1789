"""The long proofs: a run broken off at every step, ten times, by every kind of thing that it may train with."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from trainer.adapters import AnyAdapter
from trainer.assemble import assemble
from trainer.beginning import run_folder_of
from trainer.core.clock import Clock
from trainer.core.progress import Silence
from trainer.loop.train import train
from trainer.optim.optimizers import AnyOptimizer
from trainer.recipe.recipe import Recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 30

# accumulation of 2 in epochs of 3 batches: stops fall into the middle of epochs and at their ends, and a warm-up of 3
EVERYTHING: dict[str, Any] = {"ema": {"decay": 0.9, "every": 2}}
OPTIMIZERS = {member.model_fields["kind"].default: member for member in get_args(get_args(AnyOptimizer)[0])}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 2, "dropout": 0.1, "layers": ["attention", "te1"]},
    "dora": {"kind": "lora", "rank": 2, "decompose": "inputs"},
    "pissa": {"kind": "lora", "rank": 2, "initial": "principal"},
    "loha": {"kind": "loha", "rank": 2},
    "lokr": {"kind": "lokr", "rank": 2},
    "full": {"kind": "full", "fused": False},
}
FOLDER: dict[str, Any] = {"layout": "folder"}  # of a whole model with this small tokenizer
# moved in the backward pass, tensor by tensor: without accumulation, and by optimisers that can do so
FUSED: dict[str, dict[str, Any]] = {
    "float32": {"kind": "full"},
    "bfloat16": {"kind": "full", "weights": "bfloat16"},
}


def finish(recipe: Recipe, *, resume: bool = False) -> Path:
    run = assemble(recipe, resume=resume, progress=Silence())
    with run.trackers:
        return train(run)


def broken_off(whole: Recipe, step: int, runs: Path) -> Recipe:
    """The recipe of a run that was killed after `step` steps of the whole one."""
    copy = runs / whole.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run_folder_of(whole).root, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    result = whole.export.result(copy / f"{whole.name}.safetensors")
    shutil.rmtree(result) if result.is_dir() else result.unlink()
    return whole.model_copy(update={"runs": runs})


def content(result: Path) -> dict[str, bytes]:
    files = [result] if result.is_file() else sorted(path for path in result.rglob("*") if path.is_file())
    return {str(path.relative_to(result.parent)): path.read_bytes() for path in files}


def checkpoint_bytes(recipe: Recipe, step: int) -> dict[str, bytes]:
    folder = run_folder_of(recipe).checkpoint(step)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "manifest.json"}


def test_a_run_of_thirty_steps_goes_on_from_every_one(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    whole = recipe_of(steps=STEPS, **EVERYTHING)
    result = finish(whole).read_bytes()
    last = checkpoint_bytes(whole, STEPS)
    for step in range(STEPS):
        broken = broken_off(whole, step, tmp_path / "broken")
        assert finish(broken, resume=True).read_bytes() == result, f"broken off after step {step}"
        assert checkpoint_bytes(broken, STEPS) == last, f"broken off after step {step}"


def test_a_run_that_is_broken_off_ten_times_ends_the_same(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe_of(steps=STEPS, **EVERYTHING)
    result = finish(whole).read_bytes()
    chain = whole.model_copy(update={"runs": whole.runs / "chain"})
    tick, limit = Clock.tick, [0]

    def tick_until(clock: Clock, pictures: int) -> None:
        tick(clock, pictures)
        if clock.step == limit[0]:
            raise ConnectionResetError

    for life in range(10):
        run = assemble(chain, resume=life > 0, progress=Silence())
        limit[0] = run.clock.step + 2 + life % 3  # the steps before it are saved, and it is lost
        with monkeypatch.context() as broken, pytest.raises(ConnectionResetError), run.trackers:
            broken.setattr(Clock, "tick", tick_until)
            train(run)
    assert finish(chain, resume=True).read_bytes() == result


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_adapter_goes_on_exactly_with_each_optimizer(
    recipe_of: Callable[..., Recipe], tmp_path: Path, adapter: str, optimizer: str
) -> None:
    goes_on_exactly(
        recipe_of, tmp_path, optimizer, adapter=ADAPTERS[adapter], export=FOLDER if adapter == "full" else {}
    )


@pytest.mark.parametrize("optimizer", [kind for kind, settings in OPTIMIZERS.items() if settings.apart])
@pytest.mark.parametrize("weights", FUSED)
def test_whole_models_that_move_in_the_backward_pass_go_on_exactly(
    recipe_of: Callable[..., Recipe], tmp_path: Path, weights: str, optimizer: str
) -> None:
    said = {"adapter": FUSED[weights], "precision": weights, "accumulate": 1, "export": FOLDER}
    goes_on_exactly(recipe_of, tmp_path, optimizer, **said)


def goes_on_exactly(recipe_of: Callable[..., Recipe], folder: Path, optimizer: str, **changes: Any) -> None:
    moving: dict[str, Any] = {"kind": optimizer} | ({} if optimizer == "prodigy" else {"rate": 1.0e-3})
    rate = {"kind": "constant"} if optimizer == "adamw_schedule_free" else {"kind": "cosine", "warmup": 2}
    whole = recipe_of(steps=4, optimizer=moving, rate=rate, **changes)
    result = content(finish(whole))
    last = checkpoint_bytes(whole, 4)
    for step in (1, 3):
        broken = broken_off(whole, step, folder / "broken")
        assert content(finish(broken, resume=True)) == result
        assert checkpoint_bytes(broken, 4) == last


def test_every_kind_of_adapter_is_among_these_or_has_its_own_test() -> None:
    kinds = {member.model_fields["kind"].default for member in get_args(get_args(AnyAdapter)[0])}
    elsewhere = {"textual_inversion", "pivotal"}  # tests/loop/test_words_and_models.py: their words stand in captions
    assert kinds == {adapter["kind"] for adapter in ADAPTERS.values()} | elsewhere


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_data_are_prepared_keeps_what_is_finished(
    recipe_of: Callable[..., Recipe], tmp_path: Path, number: signal.Signals
) -> None:
    """In a process of its own: from its first moments on, a signal leads to its own code and no traceback."""
    recipe_of("early", steps=3)
    command = [sys.executable, "-m", "trainer", "train", str(tmp_path / "early.yaml"), "--resume"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for delay in (0.0, 2.0, 5.0):
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while not (tmp_path / "runs" / "early" / ".lock").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(delay)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode in (128 + number, 0), said
        assert "Traceback" not in said
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
