"""Each moment at which a life changes something on the disk, and a kill at any of them.

Renames, removals, new folders, files opened for writing and flushes are counted as Python's audit events tell them
(and `os.fsync`, which tells none), in the folders that are asked for. What libraries do behind Python's back is counted
by strace, where there is one.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lives import Deed, Ending, Forked, Place

_CHANGES: Final = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"})
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CALLS: Final = ("rename", "fsync", "unlink", "unlinkat")
"""System calls at which a life is killed; strace counts each by itself."""


def counting(root: Path, tell: Callable[[int, str], None]) -> Deed:
    """What is to be done in a child so that `tell` hears of each change below `root`, before it happens.

    Args:
        root: other places do not count.
        tell: called with the number of the change, from 1, and its kind.
    """

    def begin() -> None:
        count, flush = 0, os.fsync

        def note(kind: str) -> None:
            nonlocal count
            count += 1
            tell(count, kind)

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            if _changes(event, arguments, str(root)):
                note(event)

        def flush_counted(descriptor: int) -> None:
            note("os.fsync")
            flush(descriptor)

        os.fsync = flush_counted
        sys.addaudithook(hear)

    return begin


def _changes(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Whether an audit event changes something below `root`."""
    if event in _CHANGES:
        path = str(arguments[0])
        return path.startswith(root) or not path.startswith("/")  # shutil.rmtree removes by names within a folder
    if event != "open" or not str(arguments[0]).startswith(root):
        return False
    mode, flags = arguments[1], arguments[2]
    return mode[0] in "wax" if isinstance(mode, str) else bool(flags & _WRITING)


def count_changes(place: Place) -> list[str]:
    """The changes of a whole life, by kind, in their order."""
    path = place.root.with_suffix(".changes")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    ending = Forked(place, before=counting(place.root, lambda _, kind: _write_line(file, kind))).wait()
    os.close(file)
    if ending.code != 0:
        raise SystemExit(f"The life whose changes were counted failed:\n{ending.said}")
    return path.read_text(encoding="utf-8").splitlines()


def die_before(place: Place, number: int) -> Ending:
    """A life that is killed right before its change number so and so."""

    def tell(count: int, _kind: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return Forked(place, "--resume", before=counting(place.root, tell)).wait()


def has_strace() -> str | None:
    """None where strace can look at our children; else why it cannot."""
    if shutil.which("strace") is None:
        return "there is no strace"
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"strace may not look: {done.stderr.strip()[:80]}"


def die_at_call(place: Place, call: str, number: int) -> Ending:
    """A life that is killed at its system call number so and so of this name."""
    opened, ready = os.pipe()

    def wait_for_strace() -> None:
        os.read(opened, 1)

    life = Forked(place, "--resume", before=wait_for_strace)
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-p", str(life.number)]
    inject = ["-e", f"inject={call}:signal=SIGKILL:when={number}"]
    strace = subprocess.Popen([*command, *inject], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{life.number}/status")
    deadline = time.monotonic() + 20
    while "TracerPid:\t0" in status.read_text(encoding="utf-8") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.write(ready, b"1")
    ending = life.wait()
    strace.wait()
    os.close(opened)
    os.close(ready)
    return ending


def _write_line(file: int, text: str) -> None:
    os.write(file, f"{text}\n".encode())
