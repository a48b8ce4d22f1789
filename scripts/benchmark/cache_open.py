"""How long a cache of a million entries takes to open and to give its first batch, and how much memory.

    python scripts/benchmark/cache_open.py [--entries 1000000] [--reads 1000] [--runs 5] [--folder FOLDER] [--out FILE]

The cache is filled through the public way with small tensors, in shards of 1,000, in a folder of its own that is
removed afterwards. Each run is a process of its own: it imports, then opens the cache, asks whether all entries are
there (as a run does before it begins), and reads entries in an order by chance. Memory is what the process takes more
than after its imports. The index is measured as well as its absence, when all shards are opened and it is made again.

Wall-clock counts on an idle machine; on a busy one, compare the processor seconds.
"""

import argparse
import importlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from startup import environment

_A_SHARD = 1000
_ENCODER = "benchmark"
_GOAL_SECONDS, _GOAL_MEGABYTES = 3.0, 500.0


class Figures(TypedDict):
    """One process: seconds, and megabytes beyond those after its imports."""

    imports: float
    open: float
    known: float
    reads: float
    together: float
    processor: float
    reads_each_microseconds: float
    megabytes: float
    open_files: int


def keys(entries: int) -> list[str]:
    """The keys of all entries."""
    from trainer.data.cache import cache_key

    return [cache_key("benchmark", number) for number in range(entries)]


def fill(root: Path, entries: int) -> dict[str, float]:
    """Write all entries, and the index; seconds and size of it."""
    import torch

    from trainer.data.cache import TensorCache

    began = time.perf_counter()
    cache = TensorCache(root, _ENCODER)
    for shard in _shards(keys(entries)):
        numbers = torch.full((len(shard), 4, 2, 2), 0.5)
        cache.write({key: {"mean": row, "deviation": row} for key, row in zip(shard, numbers, strict=True)})
    cache.save_index()
    size = sum(file.stat().st_size for file in cache.folder.iterdir())
    return {"fill_seconds": round(time.perf_counter() - began, 1), "megabytes_on_disk": round(size / 1e6, 1)}


def measure(root: Path, entries: int, reads: int, seed: int) -> Figures:
    """What one process needs; to be called in a fresh one."""
    began = time.perf_counter()
    import psutil
    import torch

    from trainer.data.cache import TensorCache

    importlib.import_module("safetensors.torch")  # the first read would do it
    torch.set_num_threads(1)
    wanted = keys(entries)
    ready = time.perf_counter()
    process = psutil.Process()
    before = process.memory_info().rss
    start, used = time.perf_counter(), time.process_time()
    cache = TensorCache(root, _ENCODER)
    opened = time.perf_counter()
    if not bool(cache.known(wanted).all()):
        raise SystemExit("an entry is missing")
    asked = time.perf_counter()
    for key in random.Random(seed).sample(wanted, reads):
        if cache.read(key) is None:
            raise SystemExit("an entry cannot be read")
    ended = time.perf_counter()
    return Figures(
        imports=ready - began,
        open=opened - start,
        known=asked - opened,
        reads=ended - asked,
        together=ended - start,
        processor=time.process_time() - used,
        reads_each_microseconds=(ended - asked) / reads * 1e6,
        megabytes=(process.memory_info().rss - before) / 1e6,
        open_files=len(process.open_files()),
    )


def runs_of(root: Path, entries: int, reads: int, runs: int, *, index: bool) -> dict[str, float]:
    """Medians of several fresh processes."""
    figures: list[Figures] = []
    for run in range(runs):
        if not index:
            for file in root.glob("*/index.safetensors"):
                file.unlink()
        arguments = ["--measure", str(root), "--entries", str(entries), "--reads", str(reads), "--seed", str(run)]
        told = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
        figures.append(json.loads(told.stdout))
    names = list(Figures.__annotations__)
    return {name: round(statistics.median(float(one[name]) for one in figures), 3) for name in names}


def main() -> None:
    """Fill, measure with and without the index, print, and clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--reads", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the cache is made and removed; else where temporary files go"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure is not None:
        print(json.dumps(measure(asked.measure, asked.entries, asked.reads, asked.seed)))
        return
    around = environment()
    print("  ".join(f"{name} {value}" for name, value in around.items()))
    root = Path(tempfile.mkdtemp(prefix="cache-benchmark-", dir=asked.folder))
    try:
        filled = fill(root, asked.entries)
        print(f"{asked.entries:,} entries filled in {filled['fill_seconds']} s, {filled['megabytes_on_disk']} MB")
        with_index = runs_of(root, asked.entries, asked.reads, asked.runs, index=True)
        without = runs_of(root, asked.entries, asked.reads, max(1, asked.runs // 2), index=False)
    finally:
        shutil.rmtree(root)
    _print("with the index", with_index)
    _print("without it", without)
    good = with_index["together"] <= _GOAL_SECONDS and with_index["megabytes"] <= _GOAL_MEGABYTES
    print(f"goal {_GOAL_SECONDS} s, {_GOAL_MEGABYTES} MB: {'reached' if good else 'missed'}")
    if asked.out is not None:
        told = {"environment": around, **filled, "with_index": with_index, "without_index": without}
        asked.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _print(title: str, figures: dict[str, float]) -> None:
    print(
        f"{title:16} open {figures['open']:.3f} s  all keys known {figures['known']:.3f} s  "
        f"reads {figures['reads']:.3f} s ({figures['reads_each_microseconds']:.0f} µs each)  "
        f"together {figures['together']:.3f} s (processor {figures['processor']:.3f} s)  "
        f"memory +{figures['megabytes']:.0f} MB  open files {figures['open_files']:.0f}"
    )


def _shards(names: list[str]) -> Iterator[list[str]]:
    return (names[start : start + _A_SHARD] for start in range(0, len(names), _A_SHARD))


if __name__ == "__main__":
    main()
