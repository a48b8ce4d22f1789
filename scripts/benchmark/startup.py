"""How long `trainer --help` takes, and a run until its first step: wall-clock and processor seconds, also as JSON.

    python scripts/benchmark/startup.py [--runs 11] [--out FILE] [VERB ...]
    python scripts/benchmark/startup.py --train recipes/character-lora.yaml [--runs 5] [--out FILE]

With --train, each run is a process of its own that does what `trainer train` does, with a cache that is filled and
without pictures before the first step, until that step is done; then it is killed. The table says what it did when.
Wall-clock counts on an idle machine; on a busy one, compare the processor seconds.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypedDict


class Figures(TypedDict):
    """Seconds of several runs of one command."""

    command: str
    wall_median: float
    wall_min: float
    processor_median: float
    processor_min: float
    runs: int


def as_installed() -> dict[str, str]:
    """The environment of a process that keeps its byte code, as a person's does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(arguments: list[str], runs: int) -> Figures:
    """The seconds of `runs` runs, after one that fills the disk's cache and the byte code's."""
    command = [sys.executable, "-m", "trainer", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=as_installed())
    walls: list[float] = []
    processors: list[float] = []
    for _ in range(runs):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=as_installed())
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return Figures(
        command=" ".join(["trainer", *arguments]),
        wall_median=round(statistics.median(walls), 3),
        wall_min=round(min(walls), 3),
        processor_median=round(statistics.median(processors), 3),
        processor_min=round(min(processors), 3),
        runs=runs,
    )


def measure_train(recipe: str, runs: int) -> dict[str, dict[str, float]]:
    """Medians of wall-clock and processor seconds at the end of each part of a run's beginning."""
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"runs={folder}", f"data.cache.folder={folder}/cache", "trackers=[]", "previews.prompts=[]"]
        told: list[dict[str, list[float]]] = []
        for number in range(runs + 1):  # the first one fills the cache
            command = [sys.executable, __file__, "--until-first-step", recipe, *keys, f"name=startup-{number}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=as_installed())
            told.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        part: {
            "wall": round(statistics.median(one[part][0] for one in told[1:]), 2),
            "processor": round(statistics.median(one[part][1] for one in told[1:]), 2),
        }
        for part in told[0]
    }


def until_first_step(arguments: list[str]) -> None:
    """Be `trainer train` until the first step is done, tell the seconds since the process began, and end."""
    import psutil

    born = psutil.Process().create_time()
    told: dict[str, tuple[float, float]] = {}

    def lap(part: str) -> None:
        told[part] = (time.time() - born, time.process_time())

    def timed(module: Any, name: str, part: str) -> None:  # Any: a module whose function is exchanged
        function = getattr(module, name)

        def outer(*given: Any, **named: Any) -> Any:
            result = function(*given, **named)
            lap(part)
            return result

        setattr(module, name, outer)

    from trainer import assemble as assembling
    from trainer.loop import train as looping
    from trainer.recipe import reading

    lap("torch and what is ours imported")
    timed(reading, "read_recipe", "recipe read and checked")
    timed(assembling, "prepare_data", "libraries imported, data and cache looked at")
    timed(assembling, "_run", "model loaded, adapter put in")
    timed(looping, "rehearse", "largest batch rehearsed")
    one_step = looping.step

    def first_step(run: Any) -> None:
        one_step(run)
        run.ledger.settle()
        lap("first step done")
        print(json.dumps(told), flush=True)
        os._exit(0)

    looping.step = first_step
    from trainer.cli.main import run

    raise SystemExit(run(["train", *arguments]))  # not reached but where the recipe is refused


def environment() -> dict[str, str | int | float]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure `trainer --help` and the help of every verb that is named, or a recipe's first step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", nargs="*")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--train", metavar="RECIPE")
    parser.add_argument("--until-first-step", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.until_first_step:
        until_first_step(asked.until_first_step)
    around = environment()
    print("  ".join(f"{name} {value}" for name, value in around.items()))
    if asked.train is not None:
        parts = measure_train(asked.train, asked.runs)
        for part, seconds in parts.items():
            print(f"{part:48}  wall {seconds['wall']:6.2f} s  processor {seconds['processor']:6.2f} s")
        write(asked.out, {"environment": around, "recipe": asked.train, "runs": asked.runs, "until": parts})
        return
    figures = [measure([*([verb] if verb else []), "--help"], asked.runs) for verb in ("", *asked.verbs)]
    for one in figures:
        print(
            f"{one['command']:24}  wall {one['wall_median']:.3f} s (least {one['wall_min']:.3f})  "
            f"processor {one['processor_median']:.3f} s (least {one['processor_min']:.3f})"
        )
    write(asked.out, {"environment": around, "figures": figures})


def write(path: Path | None, found: dict[str, Any]) -> None:
    """Keep what was found, where a file is asked for."""
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
