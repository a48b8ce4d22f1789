"""The paths of one run on disk, and the lock that gives it one owner."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.core.errors import CheckpointError, RecipeError
from trainer.core.files import flush_to_disk, remove_unfinished

_NAME = re.compile(r"[\w][\w .+-]{0,99}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def check_name(name: str) -> str:
    """`name`, if it can be the name of a run: one plain word for a folder, on every system.

    Raises:
        RecipeError: it is a path, begins with a dot, ends with one, or holds characters that some system forbids.
    """
    if not _NAME.fullmatch(name) or name[-1] in " ." or _RESERVED.fullmatch(name):
        raise RecipeError(
            f"The name {name!r} cannot be a folder's name.",
            where="name",
            mend="Use letters, digits, '_', '-' and '.', such as my-character; a name is no path.",
        )
    return name


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where each thing of a run lies: the interface to everything outside the process."""

    root: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    @property
    def recipe(self) -> Path:
        """The recipe as resolved, every default written out."""
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, device, seed."""
        return self.root / "environment.json"

    @property
    def events(self) -> Path:
        """One JSON object a line."""
        return self.root / "events.jsonl"

    @property
    def data(self) -> Path:
        """The account of every dataset file."""
        return self.root / "data.json"

    @property
    def checkpoints(self) -> Path:
        """Holds one folder a checkpoint."""
        return self.root / "checkpoints"

    @property
    def result(self) -> Path:
        """What the run was for: the file that inference programs load."""
        return self.root / f"{self.name}.safetensors"

    @property
    def adapters(self) -> Path:
        """Holds results on the way, one a checkpoint."""
        return self.root / "adapters"

    def adapter(self, step: int) -> Path:
        """What `result` would have been after `step` steps."""
        return self.adapters / f"{self.name}-{step:06d}.safetensors"

    def previews(self, step: int) -> Path:
        """The folder for the pictures that were drawn after `step` steps."""
        return self.root / "previews" / f"step-{step:06d}"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint made after `step` steps."""
        return self.checkpoints / f"step-{step:06d}"

    def create(self) -> None:
        """Make the folder, and make sure that we may write into it.

        Raises:
            RecipeError: the folder cannot be made or written to.
        """
        probe = self.root / ".writable"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
            flush_to_disk(self.root.parent)
        except OSError as error:
            raise self._unwritable(error) from error

    @contextmanager
    def owned(self) -> Generator[None, None, None]:
        """Make the folder and hold the run's lock; the system releases it even when the process is killed.

        What an earlier owner had begun to write is taken away. Who is refused has changed nothing.

        Raises:
            RecipeError: the folder cannot be made or written to.
            CheckpointError: another process is training in this folder.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / ".lock")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise CheckpointError(
                "Another process is training in this folder.",
                where=str(self.root),
                mend="Wait for it, stop it, or give this run another name.",
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self.create()
            for folder in (self.root, self.checkpoints, self.adapters, *(self.root / "previews").glob("step-*")):
                remove_unfinished(folder)
            yield
        finally:
            lock.release()

    def _unwritable(self, error: OSError) -> RecipeError:
        return RecipeError(
            f"The run's folder cannot be written: {error.strerror}.",
            where=str(self.root),
            mend="Choose another folder with `runs=FOLDER`, or change its rights.",
        )
