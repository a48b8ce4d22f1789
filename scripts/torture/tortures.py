"""What a run is put through, each with what must be true afterwards."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crash_points import CALLS, count_changes, die_at_call, die_before, has_strace
from lives import Ending, Forked, Place, live, live_anew

_SIGNALS: Final = {signal.SIGINT: 130, signal.SIGTERM: 143}
_MOMENTS: Final = (  # files by which a life shows how far it has come: scanning, caching, drawing, training, the end
    "runs/tortured/.lock",
    "cache/verdicts",
    "runs/tortured/data.json",
    "runs/tortured/recipe.yaml",
    "runs/tortured/previews/step-000000/00.png",
    "runs/tortured/checkpoints/step-000001",
    "runs/tortured/checkpoints/step-000002",
    "runs/tortured/previews/step-000003",
    "runs/tortured/checkpoints/step-000005",
    "runs/tortured/checkpoints/step-000006",
)
_QUICK_ENOUGH: Final = 30.0  # seconds from a signal to the end
_TWENTY_YEARS: Final = 20 * 365 * 86_400
_TRACEBACK: Final = "Traceback (most recent call last)"
DAMAGES: Final[Mapping[str, Callable[[bytes], bytes | None]]] = {
    "removed": lambda _: None,
    "emptied": lambda _: b"",
    "cut in half": lambda old: old[: len(old) // 2],
    "one byte short": lambda old: old[:-1],
    "one byte long": lambda old: old + b"\0",
    "a bit flipped at its beginning": lambda old: bytes([old[0] ^ 1]) + old[1:],
    "a bit flipped in its middle": lambda old: _flipped(old, len(old) // 2),
    "its end zeroed": lambda old: old[: -len(old) // 4] + bytes(len(old) - len(old[: -len(old) // 4])),
}
"""Ways to damage a file; None: it is gone."""


@dataclass(slots=True)
class Tally:
    """How often what must hold did hold."""

    what: str
    asked: int = 0
    held: int = 0
    failures: list[str] = field(default_factory=list[str])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    skipped: str | None = None

    def note(self, good: bool, otherwise: str) -> None:
        """One more case."""
        self.asked += 1
        self.held += good
        if not good:
            self.failures.append(otherwise)

    @property
    def passed(self) -> bool:
        """Whether all held."""
        return self.held == self.asked and (self.asked > 0 or self.skipped is not None)


@dataclass(slots=True, kw_only=True)
class Bench:
    """What every torture needs: where to work, on what, and what an unbroken run ends with."""

    root: Path
    pictures: Path
    changes: Mapping[str, Any]
    whole: dict[str, bytes]
    seconds: float  # that an unbroken life takes
    chance: random.Random

    def place(self, name: str, **changes: Any) -> Place:
        """A fresh place."""
        return Place(root=self.root / name, changes=dict(self.changes) | changes).prepare(self.pictures)

    def finish(self, place: Place, tally: Tally, after: str) -> None:
        """Let the run go on to its end, and compare it with the unbroken one."""
        ending = live(place, "--resume")
        same = ending.code == 0 and place.kept() == self.whole and not place.half_made()
        tally.note(same, f"{after}: code {ending.code}, {place.half_made()}: {ending.said[-300:]}")


def random_kills(bench: Bench, kills: int, anew: int) -> Tally:
    """Killed at any moment, again and again, a run ends with the bytes of the unbroken one.

    `anew` of the kills meet processes that were started from nothing.
    """
    tally = Tally("random kills in a row")
    place, runs, done = bench.place("kills"), 0, 0
    fresh = set(bench.chance.sample(range(kills), min(anew, kills)))
    while done < kills:
        if done in fresh:
            ending = live_anew(place, "--resume", seconds=bench.chance.uniform(0.5, 2.0 * bench.seconds + 15))
        else:
            life = Forked(place, "--resume")
            time.sleep(bench.chance.uniform(0, 0.9 * bench.seconds))
            life.tell(signal.SIGKILL)
            ending = life.wait()
        if ending.killed:
            done += 1
            tally.note(_no_word_of_damage(ending), f"kill {done}: {ending.said[-300:]}")
            _tell_progress("kills", done, kills)
            continue
        if ending.code != 0:
            tally.note(False, f"after {done} kills: code {ending.code}: {ending.said[-300:]}")
            break
        if place.kept() != bench.whole or place.half_made():
            tally.note(False, f"after {done} kills: other bytes, or {place.half_made()}")
        runs, place = runs + 1, bench.place("kills")
    bench.finish(place, tally, "after the last kill")
    tally.facts = {"kills": done, "runs that ended with the same bytes": runs + 1, "processes from nothing": len(fresh)}
    return tally


def enumerated_kills(bench: Bench, stride: int) -> Tally:
    """Killed before each change on the disk, one after the other, a run ends with the bytes of the unbroken one."""
    tally = Tally("kills before each change on the disk")
    changes = count_changes(bench.place("points"))
    for number in range(1, len(changes) + 1, stride):
        place = bench.place("points")
        ending = die_before(place, number)
        if not ending.killed:  # a name of its own in a temporary folder more or less
            break
        bench.finish(place, tally, f"before change {number}, {changes[number - 1]}")
        _tell_progress("changes on the disk", number, len(changes))
    tally.facts = {"changes in a life": len(changes), "every": stride}
    return tally


def kills_by_strace(bench: Bench, stride: int) -> Tally:
    """The same by the system calls themselves, those of libraries too."""
    tally = Tally("kills at system calls, by strace", skipped=has_strace())
    for call in CALLS if tally.skipped is None else ():
        number, killed = 1, True
        while killed:
            place = bench.place("calls")
            killed = die_at_call(place, call, number).killed
            if killed:
                bench.finish(place, tally, f"at {call} {number}")
                number += stride
        tally.facts[call] = f"up to {number - stride}"
    tally.facts["every"] = stride
    return tally


def damages(bench: Bench) -> Tally:
    """Each file of the newest checkpoint, damaged in each way, is named, and the checkpoint before it is used."""
    tally = Tally("damages of the newest checkpoint")
    place = bench.place("damages")
    live(place)
    place.result.unlink()
    newest = place.run / "checkpoints" / "step-000006"
    sound = place.root / "sound"
    shutil.copytree(newest, sound)
    for file in sorted(sound.iterdir()):
        for name, damage in DAMAGES.items():
            content = damage(file.read_bytes())
            shutil.rmtree(newest)
            shutil.copytree(sound, newest)
            (newest / file.name).unlink()
            if content is not None:
                (newest / file.name).write_bytes(content)
            place.result.unlink(missing_ok=True)
            ending = live(place, "--resume")
            named = "damaged" in ending.said and "step-000006" in ending.said and "after step 5" in ending.said
            same = ending.code == 0 and place.kept() == bench.whole
            tally.note(named and same, f"{file.name}, {name}: code {ending.code}: {ending.said[-300:]}")
    return tally


def signals(bench: Bench, rounds: int) -> Tally:
    """A first signal at any moment of a life ends it soon, with its own code, and the run goes on to the same bytes."""
    tally, slowest, late = Tally("signals in every phase"), 0.0, 0
    for turn in range(rounds):
        for number, code in _SIGNALS.items():
            moment = _MOMENTS[(2 * turn + (number == signal.SIGTERM)) % len(_MOMENTS)]
            place = bench.place("signals")
            life = Forked(place, "--resume")
            _wait_for(place.root / moment)
            time.sleep(bench.chance.uniform(0, bench.seconds / 20))
            told = time.monotonic()
            life.tell(number)
            ending = life.wait()
            took = time.monotonic() - told
            slowest = max(slowest, took)
            late += ending.code == 0  # it was over, but for the farewell
            good = ending.code in (code, 0) and _TRACEBACK not in ending.said and not place.half_made()
            told_of = f"{number.name} at {moment}: code {ending.code} after {took:.1f} s: {ending.said[-300:]}"
            tally.note(good and took <= _QUICK_ENOUGH, told_of)
            bench.finish(place, tally, f"after {number.name} at {moment}")
        _tell_progress("rounds of signals", turn + 1, rounds)
    tally.facts = {"slowest": round(slowest, 2), "came when all was done": late}
    return tally


def wrong_clock(bench: Bench) -> Tally:
    """Where the machine's clock was set back, the newest checkpoint is still the one of the highest step."""
    tally = Tally("clock set back twenty years")
    place = bench.place("clock", steps=6)
    _stop_after(place, 3)
    checkpoints = sorted((place.run / "checkpoints").glob("step-*"))
    for back, path in enumerate(checkpoints):
        for file in (*path.iterdir(), path):
            then = time.time() - back * _TWENTY_YEARS
            os.utime(file, (then, then))
    ending = live(place, "--resume")
    last = int(checkpoints[-1].name[5:])
    tally.note(f"Going on after step {last}" in ending.said and place.kept() == bench.whole, ending.said[-300:])
    return tally


def full_disk(bench: Bench) -> Tally:
    """On a disk that is full, without names, or read-only, what is kept stays whole, and the run goes on after it."""
    tally = Tally("full, nameless and read-only disks")
    size = sum(path.stat().st_size for path in (bench.root / "whole" / "runs").rglob("step-000006/*"))
    for name, options in {
        **{f"{share} checkpoints": f"size={int(share * size) + 400_000}" for share in (0.5, 1.5, 2.5)},
        "few names": "size=50m,nr_inodes=45",
    }.items():
        place = bench.place("disk")
        with _mounted(place.root / "runs", options) as refused:
            if refused is not None:
                tally.skipped = refused
                return tally
            first = live(place)
            told = first.code in (0, 2) and _TRACEBACK not in first.said and not place.half_made()
            whole = first.code == 2 or place.kept()[f"tortured/{place.result.name}"] == _result(bench)
            tally.note(told and whole, f"{name}: code {first.code}: {first.said[-400:]}")
            _mount("-o", "remount,size=500m,nr_inodes=10000", str(place.root / "runs"))
            second = live(place, "--resume")
            same = second.code == 0 and place.kept()[f"tortured/{place.result.name}"] == _result(bench)
            tally.note(same, f"{name}, with room: code {second.code}: {second.said[-300:]}")
    place = bench.place("disk")
    with _mounted(place.root / "runs", "size=50m"):
        _stop_after(place, 3)
        _mount("-o", "remount,ro", str(place.root / "runs"))
        refused_life = live(place, "--resume")
        told = refused_life.code == 2 and _TRACEBACK not in refused_life.said
        tally.note(told, f"read-only: code {refused_life.code}: {refused_life.said[-300:]}")
        _mount("-o", "remount,rw", str(place.root / "runs"))
        bench.finish(place, tally, "read-only, then not")
    return tally


def little_memory(bench: Bench) -> Tally:
    """Where memory runs out the run says so, and goes on to the same bytes when there is more."""
    tally = Tally("little memory")
    for mebibytes in (1, 30, 60):
        place = bench.place("memory")

        def limit(room: int = mebibytes << 20) -> None:
            found = re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
            used = int(found[1]) * 1024 if found else 0
            resource.setrlimit(resource.RLIMIT_DATA, (used + room, resource.RLIM_INFINITY))

        ending = live(place, before=limit)
        told = ending.code in (0, 4) and _TRACEBACK not in ending.said
        tally.note(told, f"{mebibytes} MiB: code {ending.code}: {ending.said[-400:]}")
        bench.finish(place, tally, f"{mebibytes} MiB")
    return tally


def one_owner(bench: Bench) -> Tally:
    """While one trains, another is refused soon and changes nothing; when the first is killed, the next may begin."""
    tally = Tally("one owner")
    place = bench.place("owner")
    first = Forked(place, "--resume")
    _wait_for(place.run / "checkpoints" / "step-000001")
    os.kill(first.number, signal.SIGSTOP)
    before = _everything(place.run)
    second = live(Place(root=place.root, changes=place.changes), "--resume")
    refused = second.code == 2 and "Another process is training" in second.said and second.seconds <= 5
    tally.note(refused, f"code {second.code} after {second.seconds:.1f} s: {second.said[-300:]}")
    tally.note(_everything(place.run) == before, "the second run has changed something")
    tally.facts = {"refused after": round(second.seconds, 2)}
    first.tell(signal.SIGKILL)
    first.wait()
    bench.finish(place, tally, "after the owner was killed")
    return tally


def _tell_progress(what: str, done: int, total: int) -> None:
    if done % max(1, total // 10) == 0:
        print(f"      {what}: {done}/{total}", flush=True)


def _no_word_of_damage(ending: Ending) -> bool:
    return "damaged" not in ending.said and _TRACEBACK not in ending.said


def _stop_after(place: Place, step: int) -> None:
    """Let a life be killed when it has saved `step`."""
    life = Forked(place, "--resume")
    _wait_for(place.run / "checkpoints" / f"step-{step:06d}")
    life.tell(signal.SIGKILL)
    life.wait()


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def _everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def _result(bench: Bench) -> bytes:
    return bench.whole["tortured/tortured.safetensors"]


@contextmanager
def _mounted(folder: Path, options: str) -> Generator[str | None, None, None]:
    """A disk in memory at `folder`; gives why there is none where it may not be made."""
    folder.mkdir(parents=True, exist_ok=True)
    refused = _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield refused
    finally:
        if refused is None:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def _mount(*words: str) -> str | None:
    if shutil.which("mount") is None:
        return "there is no mount"
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no disk may be mounted: {done.stderr.strip()[:80]}"


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
