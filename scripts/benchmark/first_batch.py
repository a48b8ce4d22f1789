"""How long an epoch's first batch takes out of a cache of a million pictures, and how much memory, in one process.

    python scripts/benchmark/first_batch.py [--entries 1000000] [--runs 3] [--folder FOLDER] [--out FILE]

The cache is filled with random numbers of the bundled base's shapes, in a folder of its own that is removed afterwards;
no picture files stand behind it: training never asks. Each run is a process of its own: it imports, loads the model and
makes the table of examples, which a run has from its account; then it opens the cache, assigns all buckets, orders the
epoch and reads the first batch. Memory is what the process takes more than before it opens the cache. Apart from that:
how long `fill_cache` then takes to find that nothing is missing, as it does before a run begins.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from encode import SEEDS, bundled, random_cache, random_examples, random_settings
from startup import environment

_GOAL_SECONDS, _GOAL_MEGABYTES = 3.0, 500.0


def measure(root: Path, entries: int) -> dict[str, float]:
    """The figures of this process; to be called in a fresh one."""
    import psutil
    import torch

    from trainer.data.batches import CachedBatches
    from trainer.data.filling import fill_cache

    torch.set_num_threads(1)
    encoders = bundled().encoders
    examples, settings = random_examples(entries), random_settings(root, entries)
    encoders.encode_words(["a"])
    process = psutil.Process()
    before = process.memory_info().rss
    start, used = time.perf_counter(), time.process_time()
    batch = CachedBatches(examples, settings, encoders, SEEDS, batch=4).numbered(0)
    ended, processor = time.perf_counter(), time.process_time()
    if len(batch.keys) != 4:
        raise SystemExit("the first batch is not whole")
    grown = process.memory_info().rss - before
    checking = time.perf_counter()
    report = fill_cache(examples, settings, encoders, SEEDS, batch=4)
    if report.encoded_pictures:
        raise SystemExit("an entry is missing")
    return {
        "seconds": ended - start,
        "processor seconds": processor - used,
        "megabytes": grown / 1e6,
        "seconds of looking whether all is there": time.perf_counter() - checking,
    }


def main() -> None:
    """Fill, measure, print, and clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the cache is made and removed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure is not None:
        print(json.dumps(measure(asked.measure, asked.entries)))
        return
    around = environment()
    print("  ".join(f"{name} {value}" for name, value in around.items()))
    root = Path(tempfile.mkdtemp(prefix="batch-benchmark-", dir=asked.folder))
    arguments = ["--measure", str(root), "--entries", str(asked.entries)]
    runs: list[dict[str, float]] = []
    try:
        random_cache(root, asked.entries, bundled().encoders)
        for _ in range(asked.runs):
            told = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
            runs.append(json.loads(told.stdout))
    finally:
        shutil.rmtree(root)
    figures = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    for name, value in figures.items():
        print(f"{name:42} {value}")
    good = figures["seconds"] <= _GOAL_SECONDS and figures["megabytes"] <= _GOAL_MEGABYTES
    print(f"goal {_GOAL_SECONDS} s, {_GOAL_MEGABYTES} MB: {'reached' if good else 'missed'}")
    if asked.out is not None:
        content = json.dumps({"environment": around, "entries": asked.entries, "figures": figures}, indent=2) + "\n"
        asked.out.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
