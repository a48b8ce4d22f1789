"""Recipe -> run: the one place where settings become objects."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch.nn import Parameter

from trainer.adapters.trainable import Trainable
from trainer.beginning import check_beginning, run_folder_of, write_beginning
from trainer.core.clock import Clock
from trainer.core.device import bytes_of_size, cap_memory
from trainer.core.log import logger
from trainer.core.progress import Phases
from trainer.core.seeds import Seeds
from trainer.data.account import Account
from trainer.data.batches import CachedBatches
from trainer.evaluation.previews import Previews
from trainer.families.model import DiffusionModel
from trainer.loop.ahead import Ahead, making
from trainer.loop.checkpoints import Checkpoints
from trainer.loop.compiling import Blocks, chosen_mode
from trainer.loop.graphs import Graphs
from trainer.loop.ledger import Ledger
from trainer.loop.passing import Passing, Plain
from trainer.loop.run import Run
from trainer.optim.flat import FlatGroups
from trainer.preparing import mend_cache, open_accelerator, prepare_data
from trainer.publishing import facts_of_run
from trainer.recipe.recipe import Recipe
from trainer.tracking.trackers import Trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


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
    check_beginning(recipe, folder, resume=resume)
    recipe.model.check()
    accelerator = open_accelerator(recipe)
    recipe.optimizer.check(accelerator.device)
    if recipe.memory is not None:
        cap_memory(bytes_of_size(recipe.memory), accelerator.device)
    _compile_mode(recipe, accelerator)  # what it cannot do is said before anything is loaded
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
    model.prediction = recipe.objective.prediction or model.prediction  # previews are drawn by what is trained
    asked = None
    if recipe.previews.prompts and accelerator.is_main_process and not recipe.adapter.trains_words:
        asked = recipe.previews.understood(model)  # while text encoders have the device to themselves
        model.release_encoders()
    trainable = recipe.adapter.attach(model, Seeds(recipe.seed))
    if state is None:
        recipe.adapter.begin(trainable, model)
    run = _run(recipe, model, account, accelerator, trackers, trainable)
    run.previews.asked = asked
    if run.is_main:
        write_beginning(recipe, model, folder)
    if state is not None:
        run.restore(state)
        logger.info("Going on after step %d.", state.step)
    return run


def _run(
    recipe: Recipe,
    model: DiffusionModel,
    account: Account,
    accelerator: "Accelerator",
    trackers: Trackers,
    trainable: Trainable,
) -> Run:
    seeds, folder = Seeds(recipe.seed), run_folder_of(recipe)
    if recipe.gradient_checkpointing:
        model.use_gradient_checkpointing(2 if recipe.gradient_checkpointing == "half" else 1)
    flat = FlatGroups(trainable.groups(), whole=recipe.optimizer.joins and not recipe.adapter.moves_alone)
    optimizer = trainable.driven(recipe.optimizer.build(flat.groups), recipe.clip_norm)
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
    make = making(batches, recipe.objective, model, seeds, accelerator.process_index)
    previews = Previews(
        settings=recipe.previews,
        folder=folder,
        resolution=recipe.data.resolution,
        model=model,
        trainable=trainable,
        batch=recipe.batch,
        words_change=recipe.adapter.trains_words,
    )

    def write_result() -> Path:
        pictures = recipe.batch * recipe.accumulate * accelerator.num_processes
        facts = facts_of_run(recipe, account.training, model, clock, rates, pictures)
        return trainable.write(folder.result, facts, recipe.export)

    return Run(
        accelerator=accelerator,
        folder=folder,
        seeds=seeds,
        clock=clock,
        model=model,
        trainable=trainable,
        objective=recipe.objective,
        networks=tuple(model.network(part) for part in trainable.parts),
        flat=flat,
        ema=None if recipe.ema is None else recipe.ema.build(tuple(trainable.parameters())),
        averaged_here=averaged_here,
        optimizer=accelerator.prepare_optimizer(optimizer),
        rates=rates,
        rate=recipe.rate,
        clip_norm=recipe.clip_norm,
        batches=batches,
        ahead=Ahead(make, accelerator.device, end=recipe.steps * recipe.accumulate),
        passing=_passing(_compile_mode(recipe, accelerator), model, trainable),
        ledger=Ledger(trackers, accelerator.device),
        previews=previews,
        preview_every=recipe.previews.every,
        checkpoints=Checkpoints(folder, recipe.checkpoints),
        trackers=trackers,
        export=write_result,
    )


def _compile_mode(recipe: Recipe, accelerator: "Accelerator") -> Literal["off", "blocks", "graph"]:
    """How the run's passes are made.

    Raises:
        RecipeError: not as the recipe asks.
    """
    hindrances = {
        "weights that stream (model.resident)": recipe.model.resident < 1,
        "text encoders that are trained": recipe.adapter.trains_words,
        "weights that are moved one by one": recipe.adapter.moves_alone,
        "dropouts of loha and lokr": recipe.adapter.draws_on_processor,
        "float16, whose loss is scaled": accelerator.scaler is not None,
        "several processes": accelerator.num_processes > 1,
    }
    found = [name for name, there in hindrances.items() if there]
    return chosen_mode(recipe.compile, accelerator.device, found)


def _passing(mode: Literal["off", "blocks", "graph"], model: DiffusionModel, trainable: Trainable) -> Passing:
    if mode == "off":
        return Plain()
    return Blocks(model.denoiser) if mode == "blocks" else Graphs(tuple(trainable.parameters()))


def _prepare(accelerator: "Accelerator", model: DiffusionModel, trainable: Trainable) -> tuple[Parameter, ...]:
    """Let accelerate take every trained network; gives the parameters whose gradients it does not average."""
    averaged_here: list[Parameter] = []
    words = set(model.text_parts.values())
    for part in trainable.parts:
        # torch's wrapper for several processes waits for the gradients of all that a network gives back, and what the
        # last layer of Stable Diffusion XL's first text encoder gives back is never read: no wrapper around those
        reads_words = part in words
        network = accelerator.prepare_model(model.network(part), evaluation_mode=reads_words)
        model.set_network(part, network)
        averaged_here += [own for own in network.parameters() if own.requires_grad] if reads_words else []
    return tuple(averaged_here)
