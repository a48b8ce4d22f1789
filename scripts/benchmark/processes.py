"""One, two and four processes: how far they differ, what they send each other, how many pictures a second they train.

    python scripts/benchmark/processes.py [--steps 8] [--processes 1 2 4] [--side 64] [--rank 16] [--out FILE]

A LoRA on the bundled base, in float32 on the CPU, one thread a process. For the differences all processes together see
as many pictures at once, whatever their number, so that they are one run; what differs is rounding. For the speed each
process has as many as one process alone had, so that more processes have more to do, and the time of a step says what
meeting each other costs; that needs as many free processors as processes. What travels is counted by torch's profiler
over three steps of two processes: numbers in each collective, times four bytes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from startup import environment

ROOT = Path(__file__).parents[2]
WARM = 2  # steps that are not timed


def main() -> None:
    """Write pictures and recipes, train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)  # as a worker: count what travels
    asked = parser.parse_args()
    if asked.watch:
        watch(asked.watch)
        return
    around = environment()
    print("  ".join(f"{name} {value}" for name, value in around.items()), flush=True)
    with tempfile.TemporaryDirectory() as name:
        figures: dict[str, Any] = {"environment": around, **measured(Path(name), asked)}
    for kind in ("differences", "speed"):
        for row in figures[kind]:
            print(f"{kind}:  " + "  ".join(f"{key} {value}" for key, value in row.items()))
    print("travelled in a step:  " + "  ".join(f"{key} {value}" for key, value in figures["travelled"].items()))
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def measured(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """All figures, by what they tell."""
    write_pictures(root / "pictures", asked.side)
    together = max(asked.processes)
    differences: list[dict[str, Any]] = []
    speed: list[dict[str, Any]] = []
    for processes in asked.processes:
        recipe = write_recipe(root, f"equal-{processes}", asked, batch=together // processes)
        launch(processes, "-m", "trainer", "train", str(recipe))
        one = root / "runs" / f"equal-{asked.processes[0]}"
        differences.append({"processes": processes, **difference(root / "runs" / recipe.stem, one, asked.steps)})
        recipe = write_recipe(root, f"speed-{processes}", asked, batch=2)
        launch(processes, "-m", "trainer", "train", str(recipe))
        step = statistics.median(event["seconds"] for event in steps_of(root / "runs" / recipe.stem)[WARM:])
        alone = speed[0]["pictures a second"] if speed else 2 / step
        rate = 2 * processes / step
        speed.append(
            {
                "processes": processes,
                "seconds a step": round(step, 4),
                "pictures a second": round(rate, 2),
                "against one": round(rate / alone, 2),
            }
        )
    recipe = write_recipe(root, "watched", asked, batch=1, steps=3)
    launch(2, str(Path(__file__).resolve()), "--watch", str(recipe))
    travelled = json.loads(recipe.with_suffix(".json").read_text(encoding="utf-8"))
    return {"differences": differences, "speed": speed, "travelled": travelled}


def launch(processes: int, *command: str) -> None:
    """Run it in so many processes with one thread each, under torch's own launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*launcher, *command], env=variables, check=True, stdout=subprocess.DEVNULL)


def write_pictures(folder: Path, side: int) -> None:
    """Sixteen pictures of noise with captions."""
    from PIL import Image

    folder.mkdir()
    chance = torch.Generator().manual_seed(0)
    for number in range(16):
        pixels = torch.randint(0, 256, (side, side, 3), generator=chance, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"noise number {number}", encoding="utf-8")


def write_recipe(root: Path, name: str, asked: argparse.Namespace, *, batch: int, steps: int | None = None) -> Path:
    """A recipe of `batch` pictures a process."""
    path = root / f"{name}.yaml"
    content = {
        "name": name,
        "model": {"kind": "sd1", "weights": "bundled"},
        "precision": "float32",
        "data": {
            "sources": [{"kind": "folder", "path": str(root / "pictures")}],
            "resolution": asked.side,
            "cache": {"folder": str(root / "cache")},
        },
        "adapter": {"kind": "lora", "rank": asked.rank},
        # else Adam would make steps of full length out of gradients that are nothing but rounding
        "optimizer": {"kind": "adamw", "rate": 1e-3, "epsilon": 1e-5},
        "batch": batch,
        "steps": steps or asked.steps,
        "runs": str(root / "runs"),
        "checkpoints": {"every": 0},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def steps_of(run: Path) -> list[Mapping[str, Any]]:
    """What a run told of its steps."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "step"]


def difference(ours: Path, theirs: Path, step: int) -> dict[str, float]:
    """How far two runs are apart at most: the losses of their steps, and the weights that they end with."""
    from safetensors.torch import load_file

    losses = [[event["loss"] for event in steps_of(run)] for run in (ours, theirs)]
    one, other = (load_file(run / "checkpoints" / f"step-{step:06d}" / "trained.safetensors") for run in (ours, theirs))
    return {
        "losses": max(abs(mine - yours) for mine, yours in zip(*losses, strict=True)),
        "weights": max((one[name] - other[name]).abs().max().item() for name in one),
        "greatest weight": max(tensor.abs().max().item() for tensor in other.values()),
    }


def watch(recipe: Path) -> None:
    """Train, and count what travels in a step; the first process writes it beside the recipe."""
    from torch.profiler import ProfilerActivity, profile

    from trainer.assemble import assemble
    from trainer.core.progress import Silence
    from trainer.loop.train import step
    from trainer.recipe.reading import read_recipe

    run = assemble(read_recipe(recipe), resume=False, progress=Silence())
    with run.trackers, run.ahead:
        for network in run.networks:
            network.train()
        step(run)  # in the first two torch finds out in which order gradients come
        step(run)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            step(run)
    counts = Counter[str]()
    for event in seen.events() or ():
        kind = str(event.name)
        if kind.startswith("gloo:"):
            counts[f"{kind.removeprefix('gloo:')} times"] += 1
            counts[f"{kind.removeprefix('gloo:')} bytes"] += 4 * sum(
                torch.Size(one).numel() for one in event.input_shapes
            )
    trained = sum(parameter.numel() for parameter in run.trainable.parameters())
    frozen = sum(own.numel() for network in run.networks for own in network.parameters()) - trained
    if run.is_main:
        told = {"trained bytes": 4 * trained, "frozen bytes": 4 * frozen, **counts}
        recipe.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


if __name__ == "__main__":
    main()
