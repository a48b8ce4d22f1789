"""How long `trainer --help` takes: wall-clock and processor seconds over several runs, printed and as JSON.

    python scripts/benchmark/startup.py [--runs 11] [--out FILE] [VERB ...]

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
import time
from pathlib import Path
from typing import TypedDict


class Figures(TypedDict):
    """Seconds of several runs of one command."""

    command: str
    wall_median: float
    wall_min: float
    processor_median: float
    processor_min: float
    runs: int


def measure(arguments: list[str], runs: int) -> Figures:
    """The seconds of `runs` runs, after one that fills the disk's cache and the byte code's."""
    command = [sys.executable, "-m", "trainer", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    walls: list[float] = []
    processors: list[float] = []
    for _ in range(runs):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
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


def environment() -> dict[str, str | int | float]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure `trainer --help`, and the help of every verb that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", nargs="*")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    around = environment()
    print("  ".join(f"{name} {value}" for name, value in around.items()))
    figures = [measure([*([verb] if verb else []), "--help"], asked.runs) for verb in ("", *asked.verbs)]
    for one in figures:
        print(
            f"{one['command']:24}  wall {one['wall_median']:.3f} s (least {one['wall_min']:.3f})  "
            f"processor {one['processor_median']:.3f} s (least {one['processor_min']:.3f})"
        )
    if asked.out is not None:
        asked.out.write_text(json.dumps({"environment": around, "figures": figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
