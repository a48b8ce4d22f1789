"""Weights & Biases, in a process of its own."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from trainer.core.run_folder import RunFolder
from trainer.tracking.tracker import Table, Tracker, TrackerSettings, need


class Wandb(TrackerSettings):
    """Weights & Biases; its files lie in the run's folder `wandb`.

    The key comes from `wandb login` or from WANDB_API_KEY, never from a recipe.
    """

    kind: Literal["wandb"] = "wandb"
    mode: Literal["online", "offline", "disabled"] = "online"
    """`offline` writes files that `wandb sync` can upload later."""
    project: str = "trainer"
    """The project in which the run is listed."""
    entity: str | None = None
    """The user or team to whom the project belongs; nothing said: the login's own."""

    def open(self, folder: RunFolder, config: Mapping[str, object], step: int) -> Tracker:
        """See `TrackerSettings.open`."""
        need("wandb")
        home = folder.root.resolve() / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        identity = home / "run-id.txt"  # a resumed run goes on under the same number
        if not identity.is_file():
            identity.write_text(secrets.token_hex(5), encoding="utf-8")
        wanted = {
            "dir": str(home.parent),
            "id": identity.read_text(encoding="utf-8").strip(),
            "name": folder.name,
            "config": dict(config),
            "resume": "allow" if self.mode == "online" else None,
            **self.model_dump(include={"mode", "project", "entity"}),
        }
        return _WandbTracker(wanted, home)


class _WandbTracker(Tracker):
    """Sends records to `trainer.tracking.wandb_process`, one line of JSON each.

    A process of its own, because wandb holds up the end of the process that it runs in for as long as its server does
    not answer (measured: until its own time limits have passed), and because a process can be ended.
    """

    def __init__(self, wanted: Mapping[str, object], home: Path) -> None:
        self._log = home / "process.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer.tracking.wandb_process"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "WANDB_CACHE_DIR": str(home / "cache"), "WANDB_DATA_DIR": str(home / "data")},
                start_new_session=True,  # Ctrl-C is meant for the run, which closes its trackers in good order
            )
        self._send(wanted)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._send({"step": step, "scalars": dict(values)})

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        self._send({"step": step, "pictures": {name: str(path.resolve()) for name, path in pictures.items()}})

    def table(self, step: int, name: str, table: Table) -> None:
        self._send({"step": step, "tables": {name: {"columns": table.columns, "data": table.rows}}})

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.wait() != 0:
            raise RuntimeError(self._last_words())

    def abandon(self) -> None:
        import psutil

        try:
            process = psutil.Process(self._process.pid)
            family = [*process.children(recursive=True), process]  # wandb starts a process too
        except psutil.NoSuchProcess:
            return
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()

    def _send(self, record: Mapping[str, object]) -> None:
        if self._process.stdin is None:
            raise RuntimeError("its process has no input")
        try:
            self._process.stdin.write(json.dumps(record).encode("utf-8") + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise RuntimeError(self._last_words()) from error

    def _last_words(self) -> str:
        """Why the process ended, by the last line that it wrote."""
        said = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(said) if line.strip()), "its process has ended")
