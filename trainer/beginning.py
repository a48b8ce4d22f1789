"""What a run folder says of how its run began: which recipe, which files, which machine."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trainer import __version__
from trainer.core.device import pick_device
from trainer.core.errors import CheckpointError
from trainer.core.files import write_atomically
from trainer.core.log import logger
from trainer.core.run_folder import RunFolder
from trainer.families.model import DiffusionModel
from trainer.recipe.reading import read_recipe, write_recipe
from trainer.recipe.recipe import Recipe
from trainer.weights.adapter_digests import digest_of_adapter

MAY_CHANGE = frozenset(
    {"steps", "previews", "trackers", "checkpoints", "export", "runs", "captioner", "compile", "memory"}
)
"""Keys of a recipe that a resumed run may have otherwise than before: none decides a step that is already made."""

_PACKAGES = (
    "torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors", "prodigyopt",
    "schedulefree",
)  # fmt: skip


def run_folder_of(recipe: Recipe) -> RunFolder:
    """The folder that a recipe's run has, or will have."""
    return RunFolder(recipe.runs / recipe.name)


def is_finished(recipe: Recipe) -> bool:
    """Whether the run has made all the steps that its recipe asked for."""
    folder = run_folder_of(recipe)
    result = recipe.export.result(folder.result)
    return result.exists() and read_recipe(folder.recipe).steps >= recipe.steps


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
    before = read_recipe(folder.recipe).model_dump(mode="json")
    now = recipe.model_dump(mode="json")
    changed = sorted(key for key in now if now[key] != before.get(key) and key not in MAY_CHANGE)
    if changed:
        raise CheckpointError(
            f"The recipe has changed since this run began: {', '.join(changed)}.",
            where=str(folder.recipe),
            mend=f"Only {', '.join(sorted(MAY_CHANGE))} may change; put it back, or give the recipe another name.",
        )
    began_with = _read_environment(folder).get("files", {})
    for key, path in _files_of(recipe).items():
        if path.exists() and digest_of_adapter(path) != began_with.get(key):  # it may be gone: it did its part
            raise CheckpointError(
                f"The file of {key} is another one than when this run began.",
                where=str(path),
                mend="Put the old file back, or give the recipe another name.",
            )


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
        "seed": recipe.seed,
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
