"""Lives of `trainer train` that can be ended at will: forked from one process that has imported everything.

To start Python and import torch and diffusers takes longer than all that a small run does, so a child is forked for
each life. What runs in it is the program's own command, and a kill ends it as it would end any process.
"""

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
TOO_LONG: Final = 300.0  # seconds after which a life hangs

Deed = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a life ended."""

    code: int  # as a shell says it: 128 and the signal's number where a signal ended it
    seconds: float
    said: str

    @property
    def killed(self) -> bool:
        """Whether it was ended from outside, before it was done."""
        return self.code == 128 + signal.SIGKILL


@dataclass(slots=True, kw_only=True)
class Place:
    """A folder with a recipe in it, its data set, cache and runs."""

    root: Path
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def recipe(self) -> Path:
        """The recipe of its run."""
        return self.root / "recipe.yaml"

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.root / "runs" / "tortured"

    @property
    def result(self) -> Path:
        """What the run is for."""
        return self.run / "tortured.safetensors"

    def prepare(self, pictures: Path) -> "Place":
        """Write the recipe; nothing else is there then."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        content = recipe_of(pictures, self.root) | dict(self.changes)
        self.recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
        return self

    def kept(self) -> dict[str, bytes]:
        """The bytes that a run shall end with: its result, and the tensors of its last checkpoint."""
        checkpoints = sorted((self.run / "checkpoints").glob("step-*"))
        files = [self.result, *sorted(checkpoints[-1].glob("*.safetensors"))]
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}

    def half_made(self) -> list[str]:
        """What lies in the run's folder under a name that it should not have any more."""
        return [str(path.relative_to(self.run)) for path in self.run.rglob("*") if path.name.endswith(".tmp")]


def recipe_of(pictures: Path, folder: Path) -> dict[str, Any]:
    """A run of few steps with all that has a memory: accumulation, averages, 8-bit moments, dropouts, previews."""
    return {
        "name": "tortured",
        "model": {"kind": "sd1", "weights": "bundled"},
        "precision": "float32",
        "data": {
            "sources": [{"kind": "folder", "path": str(pictures)}],
            "captions": {"trigger": "blobby", "shuffle_tags": True, "dropout": 0.2},
            "resolution": 16,
            "flip": True,
            "cache": {"folder": str(folder / "cache")},
        },
        "adapter": {"kind": "lora", "rank": 2, "dropout": 0.1, "layers": ["attention"]},
        "optimizer": {"kind": "adamw_8bit", "rate": 1.0e-3},
        "rate": {"kind": "cosine", "warmup": 2},
        "ema": {"decay": 0.9},
        "batch": 2,
        "accumulate": 2,
        "steps": 6,
        "gradient_checkpointing": False,
        "runs": str(folder / "runs"),
        "previews": {"every": 3, "prompts": ["blobby, face"], "size": 16, "draw": {"steps": 1}},
        "checkpoints": {"every": 1, "keep": 2},
    }


def some_pictures(folder: Path, count: int = 5) -> Path:
    """The first few pictures of the bundled data set with their captions, in a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = sorted((ROOT / "datasets" / "blob").glob("*.png"))[:count]
    for picture in pictures:
        for file in (picture, picture.with_suffix(".txt")):
            if file.exists():
                shutil.copy(file, folder)
    return folder


def warm_up(place: Place) -> float:
    """Import all that a life imports, so that the lives which are forked from here need not; gives the seconds.

    A first life says what that is: it makes the run at `place`.
    """
    began = time.monotonic()
    listed = place.root / "modules.json"
    ending = live(place, "--resume", at_end=lambda: _tell_modules(listed))
    if ending.code != 0:
        raise SystemExit(f"The unbroken run failed with code {ending.code}:\n{ending.said}")
    for name in json.loads(listed.read_text(encoding="utf-8")):
        with contextlib.suppress(ImportError, AttributeError, RuntimeError):  # made at run time, not imported
            importlib.import_module(name)
    listed.unlink()
    from trainer.recipe.reading import read_recipe

    read_recipe(place.recipe)  # the schema is made once a process
    gc.collect()
    gc.freeze()  # children that collect garbage need not look through all modules, nor copy their pages
    return time.monotonic() - began


def live(place: Place, *words: str, before: Deed | None = None, at_end: Deed | None = None) -> Ending:
    """A whole life, as long as it lasts."""
    return Forked(place, *words, before=before, at_end=at_end).wait()


class Forked:
    """A life that is going on."""

    def __init__(self, place: Place, *words: str, before: Deed | None = None, at_end: Deed | None = None) -> None:
        """It has begun.

        Args:
            place: where it trains.
            words: of its command line, behind the recipe.
            before: done in it before anything else.
            at_end: done in it after everything else, if it comes to that.
        """
        self._log = place.root / "said.log"
        self._began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.number = os.fork()
        if self.number == 0:
            _be(("train", str(place.recipe), *words), self._log, before, at_end)

    def wait(self, seconds: float = TOO_LONG) -> Ending:
        """How it ended; it is killed where it lasts longer."""
        deadline = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(self.number, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                seconds = time.monotonic() - self._began
                said = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
                return Ending(code if code >= 0 else 128 - code, seconds, said)
            if time.monotonic() > deadline:
                os.kill(self.number, signal.SIGKILL)
            time.sleep(0.002)

    def tell(self, number: int) -> bool:
        """Send it a signal; False where it is over already."""
        try:
            os.kill(self.number, number)
        except ProcessLookupError:
            return False
        return True


def live_anew(place: Place, *words: str, seconds: float = TOO_LONG) -> Ending:
    """A life in a process that was started from nothing, as a person starts it; killed after so many seconds."""
    command = [sys.executable, "-m", "trainer", "train", str(place.recipe), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    code = process.returncode
    return Ending(code if code >= 0 else 128 - code, time.monotonic() - began, said)


def _be(arguments: Sequence[str], log: Path, before: Deed | None, at_end: Deed | None) -> NoReturn:
    """Be the child: the command, with its words in a file, and the exit code that Python would give."""
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        from trainer.cli.main import run

        if before is not None:
            before()
        code = run(list(arguments))
        if at_end is not None:
            at_end()
    except BaseException:  # noqa: BLE001 - whatever it is, it ends this child, and is told as Python tells it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tell_modules(path: Path) -> None:
    path.write_text(json.dumps(sorted(sys.modules)), encoding="utf-8")
