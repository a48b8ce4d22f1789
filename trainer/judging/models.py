"""A run's models on the way: what it had become at each step of which something was kept."""

import re
from pathlib import Path
from typing import Final

from trainer.adapters.attaching import Acting, attach_adapter
from trainer.adapters.attaching_words import attach_words
from trainer.core.device import pick_device
from trainer.core.errors import CheckpointError
from trainer.core.run_folder import RunFolder
from trainer.core.tensors import read_header
from trainer.drawing import Drawable, RunCheckpoints
from trainer.weights.embeddings import read_embedding
from trainer.weights.reading import read_adapter
from trainer.weights.recognising import kind_of

_STEP: Final = re.compile(r"-(\d{6,})$")


class RunModels:
    """Opens a run as it was at one step after the other; one model is in memory at a time."""

    def __init__(self, folder: Path) -> None:
        """Nothing is loaded yet.

        Raises:
            TrainerError: there is no run in the folder, or nothing was trained in it.
        """
        self.folder = RunFolder(folder.resolve())
        self._checkpoints = RunCheckpoints(folder)
        self.recipe = self._checkpoints.recipe
        self._files = _files_of(self.folder)
        self._open: Drawable | None = None
        self._of_checkpoints = False
        if not self.steps:
            raise CheckpointError(
                "Nothing is trained in this run yet.",
                where=str(folder),
                mend="Wait for its first checkpoint (checkpoints.every), or let it end.",
            )

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

    def at(self, step: int) -> Drawable:
        """The run's model as it was after `step` steps, at full strength.

        Raises:
            TrainerError: what was kept of this step is damaged.
        """
        if step not in self._checkpoints.steps():
            self._open, self._of_checkpoints = None, False  # one model at a time
            self._open = self._of_file(self._files[step])
            return self._open
        drawable = self._any_checkpoint()
        self._checkpoints.show(drawable, step)
        drawable.set_strength(1.0)
        return drawable

    def base(self) -> Drawable:
        """The run's model without what was trained."""
        drawable = self._any_checkpoint()
        drawable.set_strength(0.0)
        return drawable

    def _any_checkpoint(self) -> Drawable:
        if self._open is None or not self._of_checkpoints:
            self._open = None
            self._open, self._of_checkpoints = self._checkpoints.open(), True
        return self._open

    def _of_file(self, path: Path) -> Drawable:
        """An adapter of another step on the run's own base."""
        recipe = self.recipe
        model = recipe.model.load(recipe.precision, pick_device())
        model.prediction = recipe.objective.prediction or model.prediction
        words = {word: read_embedding(file).embedding for word, file in recipe.adapter.word_files(path).items()}
        acting: list[Acting] = []
        if path.is_dir() or kind_of(list(read_header(path).tensors)) != "textual inversion":
            acting.append(attach_adapter(model, read_adapter(path, model.naming).state))
        if words:
            acting.append(attach_words(model, words))
        return Drawable(
            model=model,
            resolution=recipe.data.resolution,
            name=path.stem,
            identity="",
            acting=_Together(acting),
            words_change=recipe.adapter.trains_words,
        )


def last_of(folder: RunFolder) -> Path:
    """Where the result of the last step lies after another one was put in its place."""
    return folder.result.with_name(f"{folder.name}-last.safetensors")


def step_of(result: Path) -> int | None:
    """After how many steps a result was written; None where it does not say."""
    said = "" if result.is_dir() else read_header(result).metadata.get("ss_steps", "")
    return int(said) if said.isdigit() else None


class _Together:
    """An adapter and the words that came with it."""

    def __init__(self, parts: list[Acting]) -> None:
        self._parts = parts

    def set_strength(self, strength: float) -> None:
        """See `Acting`."""
        for part in self._parts:
            part.set_strength(strength)


def _files_of(folder: RunFolder) -> dict[int, Path]:
    """The adapters on the way, by their step."""
    found: dict[int, Path] = {}
    for path in sorted(folder.adapters.iterdir()) if folder.adapters.is_dir() else ():
        match = _STEP.search(path.name.removesuffix(".safetensors"))
        if match and path.name.startswith(f"{folder.name}-"):
            found[int(match.group(1))] = path
    return found
