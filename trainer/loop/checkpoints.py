"""Save all, restore all, keep few."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from trainer import __version__
from trainer.core.clock import Clock
from trainer.core.errors import CheckpointError, NonFiniteError, WeightsError
from trainer.core.files import digest_of, flush_to_disk, not_written, take_name, unfinished, write_atomically
from trainer.core.log import logger
from trainer.core.run_folder import RunFolder
from trainer.core.settings import Settings
from trainer.core.tensors import first_non_finite, read_tensors, write_tensors

FORMAT = 2
_TRAINED, _OPTIMIZER, _EMA = "trained.safetensors", "optimizer.safetensors", "ema.safetensors"
_REST, _MANIFEST = "state.json", "manifest.json"
_SOONER = 10  # a checkpoint that could not be written is tried again after this part of the usual steps


class CheckpointSettings(Settings):
    """How often everything is saved, and how many are kept."""

    every: NonNegativeInt = 250
    """Steps between checkpoints; 0: only at the end, and when the run is stopped."""
    keep: PositiveInt = Field(default=2)
    """How many to keep; the newest stay, and the one that this run was resumed from."""
    adapters: NonNegativeInt = 10
    """Of how many the adapter alone is kept, the newest ones: adapters/NAME-STEP.safetensors, as other programs load it
    and as `trainer grid` and `trainer evaluate` show them; 0: of none. Whole models are not kept so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a run needs to go on: chance and order follow from the step."""

    step: int
    pictures: int
    trained: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    optimizer_facts: Mapping[str, Any]
    ema: Mapping[str, Tensor] | None = None  # averages of the weights, where the recipe asks for them
    scaler: Mapping[str, float | int] | None  # float16's loss scaling

    @property
    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The tensors by the file that they are kept in."""
        averages = {} if self.ema is None else {_EMA: self.ema}
        return {_TRAINED: self.trained, _OPTIMIZER: self.optimizer, **averages}

    @property
    def bytes(self) -> int:
        """About how long its files are together."""
        return sum(tensor.nbytes for part in self.tensors.values() for tensor in part.values())


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints of one run folder.

    One is a folder whose manifest, with the SHA-256 of every file, is written last, and which gets its name when it
    is whole. What has no valid manifest is no checkpoint.
    """

    folder: RunFolder
    settings: CheckpointSettings
    resumed: int | None = field(default=None, kw_only=True)
    """The step that this life of the run went on from: its checkpoint stays as long as the life lasts."""
    owed: int | None = field(default=None, init=False)
    """The step at which one is tried again that could not be written."""

    def due(self, clock: Clock) -> bool:
        """Whether one is due now: by its settings, or since the last could not be written.

        After a tenth of the usual steps: often enough that little can be lost once there is room, and seldom enough
        that what fails, after writing as far as it can, does not slow the run.
        """
        return clock.due(self.settings.every) or (self.owed is not None and clock.step >= self.owed)

    def owe(self, step: int) -> None:
        """The one of `step` could not be written; it is due again soon."""
        self.owed = step + max(1, self.settings.every // _SOONER)

    def save(self, state: State) -> Path:
        """Write a checkpoint, then remove those too old to keep.

        Raises:
            NotWrittenError: the disk refuses. Older checkpoints are untouched.
            NonFiniteError: a number in it is NaN or infinite; nothing was written.
        """
        final = self.folder.checkpoint(state.step)
        for file, tensors in state.tensors.items():  # of the optimiser's it was made sure when they were packed
            if file != _OPTIMIZER and (name := first_non_finite(tensors)) is not None:
                raise _not_finite(final / file, name, state.step)
        temporary = unfinished(final)
        try:
            temporary.mkdir(parents=True)
            _write(temporary, state, self._surroundings())
            if final.exists():  # a damaged one of an earlier life, or we had not gone on from before it
                self._remove(final)
            take_name(temporary, final)
            flush_to_disk(final.parent)
            flush_to_disk(self.folder.root)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)  # before what is free is told
            raise not_written(f"The checkpoint of step {state.step}", final, error, needed=state.bytes) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.owed = None
        self._prune(state.step)
        return final

    def newest(self) -> State | None:
        """The newest whole checkpoint; damaged ones are named and passed over.

        Raises:
            CheckpointError: there are checkpoints, and every one is damaged.
        """
        damaged = 0
        for _, path in self._by_step():
            try:
                return _read(path)
            except (CheckpointError, WeightsError) as error:
                damaged += 1
                logger.warning("%s", error)
        if damaged:
            raise CheckpointError(
                "Every checkpoint of this run is damaged.",
                where=str(self.folder.checkpoints),
                mend="Start the recipe under another name.",
            )
        return None

    def steps(self) -> list[int]:
        """The steps of all checkpoints that are there, rising; whether one is damaged, reading it tells."""
        return sorted(step for step, _ in self._by_step())

    def at(self, step: int) -> State:
        """The checkpoint of one step.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        return _read(self.folder.checkpoint(step))

    def digest(self, step: int) -> str:
        """A name for what the checkpoint of one step holds; it changes when anything in it does.

        Raises:
            CheckpointError: there is none.
        """
        try:
            return digest_of(self.folder.checkpoint(step) / _MANIFEST)
        except OSError as error:
            raise CheckpointError(
                f"There is no checkpoint of step {step}.",
                where=str(self.folder.checkpoints),
                mend=f"There are those of: {', '.join(map(str, self.steps())) or 'no step'}.",
            ) from error

    @property
    def bytes(self) -> int:
        """How much room those that are there take."""
        folder = self.folder.checkpoints
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0

    def _by_step(self) -> Iterator[tuple[int, Path]]:
        """Finished checkpoint folders, the highest step first: clocks of machines may be wrong, steps are not."""
        found = self.folder.checkpoints.glob("step-*") if self.folder.checkpoints.is_dir() else ()
        numbered = [(int(path.name[5:]), path) for path in found if path.name[5:].isdigit()]
        yield from sorted(numbered, reverse=True)

    def _prune(self, step: int) -> None:
        """Remove what is too old to keep.

        What stands there for later steps is damaged, or we had gone on from it: it neither counts nor is it touched
        before the run has come to its step again.
        """
        reached = [(number, path) for number, path in self._by_step() if number <= step]
        for number, path in reached[self.settings.keep :]:
            if number != self.resumed:
                try:
                    self._remove(path)
                except OSError as error:
                    logger.warning("The old checkpoint %s could not be removed: %s.", path, error.strerror)

    def _remove(self, path: Path) -> None:
        """Take a checkpoint away; it loses its name first, so that none is ever there in part."""
        aside = unfinished(path)
        take_name(path, aside)
        shutil.rmtree(aside)

    def _surroundings(self) -> dict[str, Any]:
        """What a manifest says of recipe and machine, as far as the run folder says it."""
        recipe, environment = self.folder.recipe, self.folder.environment
        return {
            "recipe_sha256": digest_of(recipe) if recipe.is_file() else None,
            "environment": json.loads(environment.read_text(encoding="utf-8")) if environment.is_file() else None,
        }


def _write(folder: Path, state: State, surroundings: Mapping[str, Any]) -> None:
    for name, tensors in state.tensors.items():
        write_tensors(folder / name, tensors)
    rest = {
        "step": state.step,
        "pictures": state.pictures,
        "optimizer": state.optimizer_facts,
        "scaler": state.scaler,
    }
    write_atomically(folder / _REST, json.dumps(rest, indent=1, allow_nan=False))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest_of(folder / name)}
        for name in (*state.tensors, _REST)
    }
    facts = {"format": FORMAT, "trainer": __version__, "step": state.step, "files": files, **surroundings}
    write_atomically(folder / _MANIFEST, _signed(facts))


def _read(folder: Path) -> State:
    """A checkpoint's content, after checking every file against the manifest."""
    try:
        manifest = _manifest_of(folder)
        averaged = _EMA in manifest["files"]
        for name in (_TRAINED, _OPTIMIZER, *((_EMA,) if averaged else ()), _REST):
            expected = manifest["files"][name]
            if (folder / name).stat().st_size != expected["bytes"] or digest_of(folder / name) != expected["sha256"]:
                raise _damaged(folder, f"{name} does not match the manifest")
        rest = json.loads((folder / _REST).read_text(encoding="utf-8"))
        return State(
            step=int(rest["step"]),
            pictures=int(rest["pictures"]),
            trained=read_tensors(folder / _TRAINED),
            optimizer=read_tensors(folder / _OPTIMIZER),
            optimizer_facts=rest["optimizer"],
            ema=read_tensors(folder / _EMA) if averaged else None,
            scaler=rest["scaler"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _manifest_of(folder: Path) -> dict[str, Any]:
    """What the manifest says, after making sure that no sign of it was changed.

    Raises:
        CheckpointError: it is not as it was written, is of another format, or of another checkpoint.
        ValueError: it is no JSON.
    """
    text = (folder / _MANIFEST).read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    if facts["format"] != FORMAT:
        raise _damaged(folder, f"its format is {facts['format']}, and this version reads {FORMAT}")
    if _signed({key: value for key, value in facts.items() if key != "sha256"}) != text:
        raise _damaged(folder, f"{_MANIFEST} is not as it was written")
    if facts["step"] != int(folder.name[5:]):
        raise _damaged(folder, f"it is that of step {facts['step']}")
    return facts


def _signed(facts: Mapping[str, Any]) -> str:
    """The text of a manifest, with the SHA-256 of all else that it says."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()
    return json.dumps({**facts, "sha256": digest}, indent=1)


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"This checkpoint is damaged: {reason}.", where=str(folder), mend="The one before is used.")


def _not_finite(path: Path, name: str, step: int) -> NonFiniteError:
    return NonFiniteError(
        f"The weight {name} is not a finite number after step {step}, so nothing was saved.",
        where=str(path),
        mend="Lower optimizer.rate, and go on with --resume from the last checkpoint, which is whole.",
    )
