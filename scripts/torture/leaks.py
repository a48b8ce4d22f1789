"""Memory, files and threads of a long run: what it has after its first part, it has at its end."""

import json
import threading
from pathlib import Path
from typing import Any, Final

from lives import Forked, Place
from tortures import Bench, Tally

_SAVES: Final = 200
_PREVIEWS: Final = 200
_SETTLED: Final = 0.25  # part of the steps after which everything has been used for the first time
_GROWTH: Final = 0.02
_STEP: Final = 2.0  # seconds: of steps that take longer the machine is too busy, or they hang


def leaks(bench: Bench, steps: int) -> Tally:
    """Memory that is resident grows by less than two per cent, files and threads by none, in steps, saves, previews."""
    tally = Tally(f"no leak in {steps:,} steps")
    changes: dict[str, Any] = dict(bench.changes) | {
        "steps": steps,
        "accumulate": 1,
        "ema": None,
        "previews": {"every": steps // _PREVIEWS, "prompts": ["blobby"], "size": 16, "draw": {"steps": 1}},
        "checkpoints": {"every": steps // _SAVES, "keep": 2},
    }
    place = Place(root=bench.root / "leaks", changes=changes).prepare(bench.pictures)
    told = place.root / "measured.jsonl"
    life = Forked(place, before=lambda: _measure_each(max(1, steps // 100), told))
    ending = life.wait(seconds=steps * _STEP)
    rows = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]
    settled = [row for row in rows if row["step"] >= _SETTLED * steps]
    tally.note(ending.code == 0 and len(settled) > 2, f"code {ending.code}: {ending.said[-300:]}")
    if len(settled) <= 2:
        return tally
    quarter = max(1, len(settled) // 4)
    early = max(row["resident"] for row in settled[:quarter])
    late = max(row["resident"] for row in settled[-quarter:])
    tally.note(late <= (1 + _GROWTH) * early, f"memory grew from {early:,} to {late:,} bytes")
    for name in ("files", "threads"):
        grown = settled[-1][name] - settled[0][name]
        tally.note(grown <= 0, f"{name}: {grown} more")
        tally.facts[name] = f"{settled[0][name]} -> {settled[-1][name]}"
    tally.facts["MiB"] = f"{early / 2**20:.1f} -> {late / 2**20:.1f} ({100 * (late / early - 1):+.2f} %)"
    return tally


def _measure_each(every: int, path: Path) -> None:
    """From now on, write down after each so many steps what this process holds."""
    import psutil

    from trainer.core.clock import Clock

    tick, process = Clock.tick, psutil.Process()

    def tick_and_measure(self: Clock, pictures: int) -> None:
        tick(self, pictures)
        if self.step % every == 0:
            row = {
                "step": self.step,
                "resident": process.memory_info().rss,
                "files": process.num_fds(),
                "threads": threading.active_count(),
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    Clock.tick = tick_and_measure  # this process is a child that ends with the run
