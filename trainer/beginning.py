"""What a run folder says of how its run began: which recipe, which files, which machine."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trainer import __version__
from trainer.core.device import pick_device, process_count
from trainer.core.errors import CheckpointError
from trainer.core.events import read_events
from trainer.core.files import write_atomically
from trainer.core.log import logger
from trainer.core.redacting import redacted_text
from trainer.core.run_folder import RunFolder
from trainer.families.model import DiffusionModel
from trainer.recipe.reading import read_recipe, write_recipe
from trainer.recipe.recipe import Recipe
from trainer.weights.adapter_digests import digest_of_adapter

MAY_CHANGE = frozenset(
    {
        "steps", "previews", "trackers", "checkpoints", "export", "runs", "captioner", "compile", "memory",
        "held_out.every", "data.cache.folder", "data.cache.memory", "data.cache.shared", "data.cache.copies",
    }
)  # fmt: skip
"""Keys of a recipe that a resumed run may have otherwise than before: none decides a step that is already made."""

_SHOWN = 60  # signs of a value
_PACKAGES = (
    "torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors", "prodigyopt",
    "schedulefree",
)  # fmt: skip


def run_folder_of(recipe: Recipe) -> RunFolder:
    """The folder that a recipe's run has, or will have."""
    return RunFolder(recipe.runs / recipe.name)


def is_finished(recipe: Recipe) -> bool:
    """Whether the run has made all the steps that the recipe asks for, and written what they led to.

    The file alone does not say so: it may be that of fewer steps, of a run that was then asked for more and stopped.
    """
    folder = run_folder_of(recipe)
    if not recipe.export.result(folder.result).exists():
        return False
    ends = [event["step"] for event in read_events(folder.events) if event["kind"] == "done"]
    return bool(ends) and ends[-1] >= recipe.steps


def check_beginning(recipe: Recipe, folder: RunFolder, *, resume: bool) -> None:
    """Make sure that what is in the folder and what is asked for belong together.

    Raises:
        CheckpointError: they do not.
        WeightsError: the file that a new run begins with is missing.
    """
    if not folder.recipe.is_file():
        for path in _files_of(recipe).values():
            digest_of_adapter(path)  # what is missing is said before anything is encoded
        return
    if not resume:
        raise CheckpointError(
            "This run has begun already.",
            where=str(folder.root),
            mend="Go on with --resume, or give the recipe another name.",
        )
    before = _flat(read_recipe(folder.recipe).model_dump(mode="json"))
    now = _flat(recipe.model_dump(mode="json"))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    as_many = before["batch"] * _processes_before(folder) == recipe.batch * process_count()
    changed = [key for key in differing if not _may_change(key) and not (key == "batch" and as_many)]
    if changed:
        raise CheckpointError(
            f"The recipe has changed since this run began: {', '.join(changed)}.",
            where=str(folder.recipe),
            mend=f"{_told(changed, before, now)}. Put it back, or give the recipe another name; only "
            f"{', '.join(sorted(MAY_CHANGE))} may change.",
        )
    if not as_many:
        raise _other_batch(before["batch"], _processes_before(folder), recipe.batch)
    if differing:
        logger.info("Changed since this run began: %s.", _told(differing, before, now))
    _check_files(recipe, folder)


def _check_files(recipe: Recipe, folder: RunFolder) -> None:
    """Make sure that the files which a run begins with are those that it began with.

    Raises:
        CheckpointError: one is another.
    """
    began_with = _read_environment(folder).get("files", {})
    for key, path in _files_of(recipe).items():
        if path.exists() and digest_of_adapter(path) != began_with.get(key):  # it may be gone: it did its part
            raise CheckpointError(
                f"The file of {key} is another one than when this run began.",
                where=str(path),
                mend="Put the old file back, or give the recipe another name.",
            )


def _processes_before(folder: RunFolder) -> int:
    """How many processes trained together when the run was last begun."""
    return int(_read_environment(folder).get("processes", 1))


def _other_batch(before: int, processes_before: int, now: int) -> CheckpointError:
    """What is wrong where all processes together would see another number of pictures at once than before."""
    whole, processes = before * processes_before, process_count()
    fitting = f"Set batch={whole // processes}" if whole % processes == 0 else f"Start {processes_before} processes"
    return CheckpointError(
        f"This run began with {whole} pictures at once (batch: {before}, processes: {processes_before}), and now they "
        f"would be {now * processes} (batch: {now}, processes: {processes}).",
        where="batch",
        mend=f"{fitting}; the number of processes may change as long as their pictures together stay the same.",
    )


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


def _flat(content: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """The values of a recipe by their dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{under}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return flat


def _told(keys: Sequence[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What each key was and is."""
    shown = [(key, _short(before.get(key)), _short(now.get(key))) for key in keys]
    return "; ".join(f"{key} was {old} and is {new}" for key, old, new in shown)


def _short(value: object) -> str:
    text = redacted_text(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _files_of(recipe: Recipe) -> dict[str, Path]:
    """LoRAs that decide the result, by their keys in the recipe."""
    return {**recipe.adapter.files, **recipe.model.files}


def write_beginning(recipe: Recipe, model: DiffusionModel, folder: RunFolder) -> None:
    """Write the recipe as resolved and the environment; from now on the run has begun."""
    environment = {
        "trainer": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "float32 products": torch.get_float32_matmul_precision(),  # high: TF32 on GPUs that have it
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "seed": recipe.seed,
        "processes": process_count(),
        "packages": {name: _version_of(name) for name in _PACKAGES},
    }
    before = _read_environment(folder)
    # as they were when the run began; they may be gone by now
    files = before.get("files") or {key: digest_of_adapter(path) for key, path in _files_of(recipe).items()}
    environment |= {"files": files} if files else {}
    environment |= {} if model.revision is None else {"revision": model.revision}
    if before and before != environment:
        logger.warning("This run began on another machine or with other versions; bits may differ from now on.")
    write_atomically(folder.environment, json.dumps(environment, indent=1))
    write_atomically(folder.recipe, write_recipe(recipe))


def _read_environment(folder: RunFolder) -> dict[str, Any]:  # Any: JSON of many kinds
    """The environment in which a run began; empty where it has not begun."""
    return json.loads(folder.environment.read_text(encoding="utf-8")) if folder.environment.is_file() else {}


def device_name() -> str:
    """What this machine trains on, as the environment of a run says it."""
    device = pick_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or device.type)


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
