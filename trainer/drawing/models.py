"""A run's models on the way: what it had become at each step of which something was kept."""

import re
from pathlib import Path
from typing import Final

from trainer.core.run_folder import RunFolder
from trainer.core.tensors import read_header
from trainer.drawing.checkpoints import RunCheckpoints
from trainer.drawing.opening import Drawable, open_result
from trainer.weights.adapter_digests import digest_of_adapter

_STEP: Final = re.compile(r"-(\d{6,})$")


class RunModels:
    """Opens a run as it was at one step after the other; one model is in memory at a time.

    Of a step there may be a checkpoint, which holds what was trained as it was trained, or an adapter in `adapters`,
    rounded as other programs get it. A checkpoint goes before.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is loaded yet.

        Raises:
            TrainerError: there is no run in the folder, or its recipe cannot be read.
        """
        self.folder = RunFolder(folder.resolve())
        self._checkpoints = RunCheckpoints(folder)
        self.recipe = self._checkpoints.recipe
        self._files = _files_of(self.folder)
        self._open: Drawable | None = None
        self._of_checkpoints = False
        self._step: int | None = None

    @property
    def steps(self) -> list[int]:
        """The steps of which a checkpoint or an adapter is there, rising."""
        return sorted(step for step in {*self._checkpoints.steps(), *self._files} if step > 0)

    def file(self, step: int) -> Path | None:
        """The adapter of a step, as other programs load it; None: only its checkpoint is there."""
        if step in self._files:
            return self._files[step]
        # the last one is the result itself, unless another was put in its place
        ends = (self.recipe.export.result(self.folder.result), last_of(self.folder))
        return next((path for path in ends if path.exists() and step_of(path) == step), None)

    def digest(self, step: int) -> str:
        """A name for what was kept of a step, which changes with its content.

        Raises:
            CheckpointError: nothing was kept of it.
        """
        return digest_of_adapter(self._files[step]) if self._is_file(step) else self._checkpoints.digest(step)

    def at(self, step: int) -> Drawable:
        """The run's model as it was after `step` steps, at full strength.

        Raises:
            TrainerError: nothing was kept of this step, or it is damaged.
        """
        drawable = self._open if self._open is not None and self._step == step else self._opened(step)
        drawable.set_strength(1.0)
        return drawable

    def base(self) -> Drawable:
        """The run's model without what was trained."""
        drawable = self._open or self._any_checkpoint()
        drawable.set_strength(0.0)
        return drawable

    def release(self) -> None:
        """No model is in memory."""
        self._open, self._of_checkpoints, self._step = None, False, None
        self._checkpoints.release()

    def _opened(self, step: int) -> Drawable:
        self._step = None
        if self._is_file(step):
            self.release()  # one model at a time
            drawable = self._open = open_result(self.recipe, self._files[step])
        else:
            drawable = self._any_checkpoint()
            self._checkpoints.show(drawable, step)
        self._step = step
        return drawable

    def _is_file(self, step: int) -> bool:
        return step in self._files and step not in self._checkpoints.steps()

    def _any_checkpoint(self) -> Drawable:
        if self._open is None or not self._of_checkpoints:
            self.release()
            self._open, self._of_checkpoints = self._checkpoints.open(), True
        return self._open


def last_of(folder: RunFolder) -> Path:
    """Where the result of the last step lies after another one was put in its place."""
    return folder.result.with_name(f"{folder.name}-last.safetensors")


def step_of(result: Path) -> int | None:
    """After how many steps a result was written; None where it does not say."""
    said = "" if result.is_dir() else read_header(result).metadata.get("ss_steps", "")
    return int(said) if said.isdigit() else None


def _files_of(folder: RunFolder) -> dict[int, Path]:
    """The adapters on the way, by their step."""
    found: dict[int, Path] = {}
    for path in sorted(folder.adapters.iterdir()) if folder.adapters.is_dir() else ():
        match = _STEP.search(path.name.removesuffix(".safetensors"))
        if match and path.name.startswith(f"{folder.name}-"):
            found[int(match.group(1))] = path
    return found
