"""Two processes see what one process with twice the batch sees."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.beginning import run_folder_of
from trainer.core.events import read_events
from trainer.core.tensors import read_tensors
from trainer.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]


def launch(recipe: Path, processes: int) -> None:
    """Train in so many processes on the CPU: one by the documented command, several by torch's own launcher."""
    documented = ["accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_config.yaml")]
    several = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = documented if processes == 1 else several
    command = [sys.executable, "-m", *launcher, "-m", "trainer", "train", str(recipe)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers", [["attention"], ["attention", "te1"], ["te1"], ["attention", "te1", "te2"]], ids="+".join
)
def test_two_processes_equal_one_with_twice_the_batch(
    recipe_of: Callable[..., Recipe], small_sdxl: Path, tmp_path: Path, layers: list[str]
) -> None:
    # dropout inside layers belongs to a process, so it is left out; five pictures make an odd last batch; and Adam
    # would make steps of full length out of gradients that are nothing but rounding, were it not for its epsilon
    adapter, optimizer = {"rank": 4, "layers": layers}, {"kind": "adamw", "rate": 0.01, "epsilon": 1e-5}
    changes: dict[str, Any] = {"steps": 6, "adapter": adapter, "optimizer": optimizer}
    if "te2" in layers:
        changes["model"] = {"kind": "sdxl", "weights": str(small_sdxl)}
    one = recipe_of("one", batch=2, **changes)
    two = recipe_of("two", batch=1, **changes)
    launch(tmp_path / "one.yaml", 1)
    launch(tmp_path / "two.yaml", 2)
    losses = [
        [event["loss"] for event in read_events(run_folder_of(recipe).events) if event["kind"] == "step"]
        for recipe in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    first, second = (read_tensors(run_folder_of(recipe).result) for recipe in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-5, rtol=1e-4)
