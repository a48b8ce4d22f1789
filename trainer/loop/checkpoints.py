"""Save all, restore all, keep few."""

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from trainer import __version__
from trainer.core.errors import CheckpointError, WeightsError
from trainer.core.files import digest_of, flush_to_disk, write_atomically
from trainer.core.log import logger
from trainer.core.run_folder import RunFolder
from trainer.core.settings import Settings
from trainer.core.tensors import read_tensors, write_tensors

FORMAT = 1
_TRAINED, _OPTIMIZER, _EMA = "trained.safetensors", "optimizer.safetensors", "ema.safetensors"
_REST, _MANIFEST = "state.json", "manifest.json"


class CheckpointSettings(Settings):
    """How often everything is saved, and how many are kept."""

    every: NonNegativeInt = 250
    """Steps between checkpoints; 0: only at the end, and when the run is stopped."""
    keep: PositiveInt = Field(default=2)
    """How many to keep; the newest stay."""


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


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run folder.

    One is a folder whose manifest, with the SHA-256 of every file, is written last, and which gets its name when it
    is whole. What has no valid manifest is no checkpoint.
    """

    folder: RunFolder
    settings: CheckpointSettings

    def save(self, state: State) -> Path:
        """Write a checkpoint, then remove those too old to keep.

        Raises:
            CheckpointError: the disk refuses. Older checkpoints are untouched.
        """
        final = self.folder.checkpoint(state.step)
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(6)}.tmp")
        try:
            temporary.mkdir(parents=True)
            _write(temporary, state)
            if final.exists():  # made by an earlier life of this run that stopped here
                shutil.rmtree(final)
            temporary.rename(final)
            flush_to_disk(final.parent)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint could not be written: {error.strerror}.",
                where=str(final),
                mend="Make room on the disk or check the folder's rights; earlier checkpoints are untouched.",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        return final

    def newest(self) -> State | None:
        """The newest whole checkpoint; damaged ones are named and passed over.

        Raises:
            CheckpointError: there are checkpoints, and every one is damaged.
        """
        damaged = 0
        for path in self._by_step():
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

    def _by_step(self) -> Iterator[Path]:
        """Finished checkpoint folders, the highest step first: clocks of machines may be wrong, steps are not."""
        found = self.folder.checkpoints.glob("step-*") if self.folder.checkpoints.is_dir() else ()
        numbered = [(int(path.name[5:]), path) for path in found if path.name[5:].isdigit()]
        yield from (path for _, path in sorted(numbered, reverse=True))

    def _prune(self) -> None:
        for path in list(self._by_step())[self.settings.keep :]:
            try:
                shutil.rmtree(path)
            except OSError as error:
                logger.warning("The old checkpoint %s could not be removed: %s.", path, error.strerror)


def _write(folder: Path, state: State) -> None:
    write_tensors(folder / _TRAINED, state.trained)
    write_tensors(folder / _OPTIMIZER, state.optimizer)
    if state.ema is not None:
        write_tensors(folder / _EMA, state.ema)
    rest = {
        "step": state.step,
        "pictures": state.pictures,
        "optimizer": state.optimizer_facts,
        "scaler": state.scaler,
    }
    write_atomically(folder / _REST, json.dumps(rest, indent=1, allow_nan=False))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest_of(folder / name)}
        for name in (_TRAINED, _OPTIMIZER, *(() if state.ema is None else (_EMA,)), _REST)
    }
    manifest = {"format": FORMAT, "trainer": __version__, "step": state.step, "files": files}
    write_atomically(folder / _MANIFEST, json.dumps(manifest, indent=1))


def _read(folder: Path) -> State:
    """A checkpoint's content, after checking every file against the manifest."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        averaged = _EMA in manifest["files"]
        for name in (_TRAINED, _OPTIMIZER, *((_EMA,) if averaged else ()), _REST):
            expected = manifest["files"][name]
            if (folder / name).stat().st_size != expected["bytes"] or digest_of(folder / name) != expected["sha256"]:
                raise _damaged(folder, f"{name} does not match the manifest")
        rest = json.loads((folder / _REST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise _damaged(folder, f"its format is {manifest['format']}, and this version reads {FORMAT}")
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


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"This checkpoint is damaged: {reason}.", where=str(folder), mend="The one before is used.")
