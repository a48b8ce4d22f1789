"""Recipe -> run: the one place where settings become objects."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Parameter

from trainer import __version__
from trainer.adapters.trainable import Trainable
from trainer.core.clock import Clock
from trainer.core.device import pick_device
from trainer.core.errors import CheckpointError
from trainer.core.files import write_atomically
from trainer.core.log import logger
from trainer.core.progress import Phases
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.data.account import Account
from trainer.data.batches import CachedBatches
from trainer.evaluation.previews import Previews
from trainer.families.model import DiffusionModel
from trainer.loop.checkpoints import Checkpoints
from trainer.loop.run import Run
from trainer.preparing import mend_cache, open_accelerator, prepare_data
from trainer.publishing import facts_of_run
from trainer.recipe.reading import read_recipe, write_recipe
from trainer.recipe.recipe import Recipe
from trainer.tracking.trackers import Trackers
from trainer.weights.adapter_digests import digest_of_adapter
from trainer.weights.export import export
from trainer.weights.lora_state import LoraState

if TYPE_CHECKING:
    from accelerate import Accelerator

MAY_CHANGE = frozenset({"steps", "previews", "trackers", "checkpoints", "export", "runs", "captioner"})
"""Keys of a recipe that a resumed run may have otherwise than before: none decides a step that is already made."""

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors")


def run_folder_of(recipe: Recipe) -> RunFolder:
    """The folder that a recipe's run has, or will have."""
    return RunFolder(recipe.runs / recipe.name)


def is_finished(recipe: Recipe) -> bool:
    """Whether the run has made all the steps that its recipe asked for."""
    folder = run_folder_of(recipe)
    result = recipe.export.result(folder.result)
    return result.exists() and read_recipe(folder.recipe).steps >= recipe.steps


def assemble(recipe: Recipe, *, resume: bool, progress: Phases) -> Run:
    """Build everything that the recipe names, with the data encoded; nothing is trained yet.

    Args:
        recipe: what to do.
        resume: go on from the newest checkpoint.
        progress: told how far the long phases are.

    Raises:
        CheckpointError: the run has begun already and `resume` is not asked for, or the recipe has changed since.
        TrainerError: something that the recipe names is not there or does not fit.
    """
    folder = run_folder_of(recipe)
    folder.create()
    _check_beginning(recipe, folder, resume=resume)
    recipe.model.check()
    accelerator = open_accelerator(recipe)
    model, account, report = prepare_data(recipe, folder, accelerator, progress)
    logger.info("%s", report)
    state = Checkpoints(folder, recipe.checkpoints).newest() if resume else None
    trackers = Trackers.open(
        recipe.trackers,
        folder,
        recipe.model_dump(mode="json"),
        step=0 if state is None else state.step,
        main=accelerator.is_main_process,
        show=lambda step, facts: progress("training", step, recipe.steps, facts),
    )
    run = _run(recipe, folder, model, account, accelerator, trackers)
    if state is None:
        recipe.adapter.begin(run.trainable, model)
    if run.is_main:
        _write_beginning(recipe, model, folder)
    if state is not None:
        run.restore(state)
        logger.info("Going on after step %d.", state.step)
    return run


def _run(
    recipe: Recipe,
    folder: RunFolder,
    model: DiffusionModel,
    account: Account,
    accelerator: "Accelerator",
    trackers: Trackers,
) -> Run:
    seeds = Seeds(recipe.seed)
    model.prediction = recipe.objective.prediction or model.prediction  # previews are drawn by what is trained
    trainable = recipe.adapter.attach(model, seeds)
    if recipe.gradient_checkpointing:
        model.use_gradient_checkpointing()
    optimizer = recipe.optimizer.build(trainable.groups())
    rates = {str(group["name"]): float(group["lr"]) for group in optimizer.param_groups}
    averaged_here = _prepare(accelerator, model, trainable)
    batches = CachedBatches(
        account.training,
        recipe.data,
        model.encoders(),
        seeds,
        batch=recipe.batch,
        world=accelerator.num_processes,
        rank=accelerator.process_index,
        mend=lambda pictures, words: mend_cache(recipe, model, pictures, words),
        live_words=recipe.adapter.trains_words,
    )
    clock = Clock(steps=recipe.steps, batches_per_epoch=batches.batches_per_epoch, accumulate=recipe.accumulate)
    previews = Previews(
        settings=recipe.previews, folder=folder, resolution=recipe.data.resolution, model=model, trainable=trainable
    )

    def write_result() -> Path:
        pictures = recipe.batch * recipe.accumulate * accelerator.num_processes
        facts = facts_of_run(recipe, account.training, model, clock, rates, pictures)
        state = LoraState(tensors=trainable.state(), alphas=trainable.alphas())
        return export(folder.result, state, model.naming, facts, recipe.export)

    return Run(
        accelerator=accelerator,
        folder=folder,
        seeds=seeds,
        clock=clock,
        model=model,
        trainable=trainable,
        objective=recipe.objective,
        networks=tuple(model.network(part) for part in trainable.parts),
        averaged_here=averaged_here,
        optimizer=accelerator.prepare_optimizer(optimizer),
        rates=rates,
        rate=recipe.rate,
        clip_norm=recipe.clip_norm,
        batches=batches,
        previews=previews,
        preview_every=recipe.previews.every,
        checkpoints=Checkpoints(folder, recipe.checkpoints),
        trackers=trackers,
        export=write_result,
    )


def _prepare(accelerator: "Accelerator", model: DiffusionModel, trainable: Trainable) -> tuple[Parameter, ...]:
    """Let accelerate take every trained network; gives the parameters whose gradients it does not average."""
    averaged_here: list[Parameter] = []
    groups = {group.name: group.parameters for group in trainable.groups()}
    words = {part: word for word, part in model.text_parts.items()}
    for part in trainable.parts:
        # torch's wrapper for several processes waits for the gradients of all that a network gives back, and what the
        # last layer of Stable Diffusion XL's first text encoder gives back is never read: no wrapper around those
        reads_words = part in words
        network = accelerator.prepare_model(model.network(part), evaluation_mode=reads_words)
        model.set_network(part, network)
        averaged_here += groups[words[part]] if reads_words else ()
    return tuple(averaged_here)


def _check_beginning(recipe: Recipe, folder: RunFolder, *, resume: bool) -> None:
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


def _write_beginning(recipe: Recipe, model: DiffusionModel, folder: RunFolder) -> None:
    """Write the recipe as resolved and the environment; from now on the run has begun."""
    environment = {
        "trainer": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device_name(),
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


def _device_name() -> str:
    device = pick_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or device.type)


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
