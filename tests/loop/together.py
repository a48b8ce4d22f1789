"""Trains a list of recipes one after another, in each of the processes that a launcher has started.

Importing torch and diffusers takes seconds, which so is paid once and not for every recipe.
Run as: torchrun --nproc_per_node N tests/loop/together.py JOBS.json
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

from trainer.assemble import assemble
from trainer.core.errors import TrainerError
from trainer.core.progress import Silence
from trainer.loop.run import Run
from trainer.loop.train import train
from trainer.recipe.reading import read_recipe


def main() -> None:
    """Do the jobs; the first process writes beside them what travelled, or what was refused."""
    torch.set_num_threads(1)
    file = Path(sys.argv[1])
    told: dict[str, Any] = {}
    first = False
    for label, job in json.loads(file.read_text(encoding="utf-8")).items():
        recipe = read_recipe(Path(job["recipe"]), job["overrides"])
        try:
            run = assemble(recipe, resume=job["resume"], progress=Silence())
            with run.trackers:
                told[label] = watched(run) if job["watched"] else train(run).name
        except TrainerError as error:
            told[label] = str(error)
        first = AcceleratorState().is_main_process
        AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage] - as its own tests do
    if first:
        file.with_suffix(".told.json").write_text(json.dumps(told), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def watched(run: Run) -> dict[str, Any]:
    """Train; gives how many numbers travelled in each collective, by its name: slow, and for short runs."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        train(run)
    sizes: dict[str, Counter[int]] = {}
    for event in seen.events() or ():
        kind = str(event.name)
        if kind.startswith("gloo:"):
            size = sum(torch.Size(shape).numel() for shape in event.input_shapes)
            sizes.setdefault(kind.removeprefix("gloo:"), Counter())[size] += 1
    trained = sum(parameter.numel() for parameter in run.trainable.parameters())
    return {"trained": trained, "sizes": {kind: list(counts.items()) for kind, counts in sizes.items()}}


if __name__ == "__main__":
    main()
