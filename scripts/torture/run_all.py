"""Put runs through all that can happen to them, and print how often what is promised held.

    python scripts/torture/run_all.py [--kills 100] [--anew 5] [--stride 1] [--calls 7] [--rounds 10]
        [--only PART ...] [--folder FOLDER] [--out FILE]

Every part trains a small model again and again with the program's own command, and compares each run with one that was
left alone, byte for byte. It needs Linux; disks are filled where tmpfs may be mounted, and system calls are met where
strace is there. The table is also written as JSON. The exit code is 0 where all held.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork keeps no threads of its parent's
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tortures
from leaks import leaks
from lives import Place, live, some_pictures, warm_up
from small_base import write_small_base
from tortures import Bench, Tally

_SEED: Final = 20


def parts(asked: argparse.Namespace) -> dict[str, Callable[[Bench], Tally]]:
    """The parts by name, in the order in which they are run."""
    return {
        "kills": lambda bench: tortures.random_kills(bench, asked.kills, asked.anew),
        "owner": tortures.one_owner,
        "damages": tortures.damages,
        "signals": lambda bench: tortures.signals(bench, asked.rounds),
        "clock": tortures.wrong_clock,
        "disk": tortures.full_disk,
        "memory": tortures.little_memory,
        "points": lambda bench: tortures.enumerated_kills(bench, asked.stride),
        "calls": lambda bench: tortures.kills_by_strace(bench, asked.calls),
        "leaks": lambda bench: leaks(bench, asked.steps),
    }


def main() -> int:
    """Run what is asked for; gives the exit code."""
    asked = arguments()
    chosen = {name: part for name, part in parts(asked).items() if not asked.only or name in asked.only}
    with tempfile.TemporaryDirectory(prefix="torture-", dir=asked.folder) as folder:
        bench = prepared(Path(folder))
        print(f"An unbroken life takes {bench.seconds:.1f} s.", flush=True)
        tallies: dict[str, Tally] = {}
        for name, part in chosen.items():
            began = time.monotonic()
            tallies[name] = part(bench)
            tallies[name].facts["seconds"] = round(time.monotonic() - began)
            print(line(tallies[name]), flush=True)
            if asked.out is not None:
                told = {name: asdict(tally) for name, tally in tallies.items()}
                asked.out.write_text(json.dumps(told, indent=1), encoding="utf-8")
    failed = [tally for tally in tallies.values() if not tally.passed]
    for tally in failed:
        print(f"\n{tally.what}:\n  " + "\n  ".join(tally.failures))
    print("Not all held." if failed else "All held.")
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="random kills in a row")
    parser.add_argument("--anew", type=int, default=5, help="of these, how many meet processes started from nothing")
    parser.add_argument("--stride", type=int, default=1, help="kill before every so manieth change on the disk")
    parser.add_argument("--calls", type=int, default=7, help="kill at every so manieth system call")
    parser.add_argument("--rounds", type=int, default=10, help="signals of each kind")
    parser.add_argument("--steps", type=int, default=2000, help="steps in which nothing may leak")
    parser.add_argument("--only", nargs="*", default=[], help="names of parts, such as kills damages")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder unless said")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser.parse_args()


def prepared(folder: Path) -> Bench:
    """The small model, the pictures, and the run that is left alone."""
    import torch

    torch.set_num_threads(1)
    changes: dict[str, Any] = {"model": {"kind": "sd1", "weights": str(write_small_base(folder / "base"))}}
    pictures = some_pictures(folder / "pictures")
    whole = Place(root=folder / "whole", changes=changes).prepare(pictures)
    warm_up(whole)
    again = Place(root=folder / "again", changes=changes).prepare(pictures)
    ending = live(again)
    if ending.code != 0 or again.kept() != whole.kept():
        raise SystemExit(f"Two unbroken runs differ:\n{ending.said}")
    return Bench(
        root=folder,
        pictures=pictures,
        changes=changes,
        whole=whole.kept(),
        seconds=ending.seconds,
        chance=random.Random(_SEED),
    )


def line(tally: Tally) -> str:
    """One row of the table."""
    facts = ", ".join(f"{name} {value}" for name, value in tally.facts.items())
    held = f"{tally.held}/{tally.asked}" if tally.skipped is None else f"skipped: {tally.skipped}"
    return f"{'ok  ' if tally.passed else 'FAIL'}  {tally.what:44}  {held:>10}  {facts}"


if __name__ == "__main__":
    sys.exit(main())
