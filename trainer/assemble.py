"""Recipe -> run: the one place where settings become objects."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch.nn import Parameter

from trainer.adapters.trainable import Trainable
from trainer.beginning import check_beginning, run_folder_of, write_beginning
from trainer.core.clock import Clock
from trainer.core.device import bytes_of_size, cap_memory, is_first_process
from trainer.core.log import logger
from trainer.core.progress import Phases
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.data.account import Account
from trainer.data.batches import CachedBatches
from trainer.evaluation.held_out import HeldOut
from trainer.evaluation.previews import Previews
from trainer.evaluation.still import StillPictures
from trainer.families.model import DiffusionModel
from trainer.loop.ahead import Ahead, making
from trainer.loop.checkpoints import Checkpoints, State
from trainer.loop.compiling import Blocks, chosen_mode
from trainer.loop.graphs import Graphs
from trainer.loop.ledger import Ledger
from trainer.loop.passing import Passing, Plain
from trainer.loop.processes import check_alike, prepared, spread
from trainer.loop.run import Run
from trainer.loop.sharding import is_sharded, shard
from trainer.optim.flat import FlatGroups
from trainer.preparing import mend_cache, open_accelerator, prepare_data
from trainer.publishing import facts_of_run
from trainer.recipe.recipe import Recipe
from trainer.spreading import check_spread
from trainer.tracking.tracker import Table
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
    accelerator = _begin(recipe, folder, resume=resume)
    model, account, report = prepare_data(recipe, folder, accelerator, progress)
    logger.info("%s", report)
    state = Checkpoints(folder, recipe.checkpoints).newest() if resume else None
    check_alike(accelerator, _facts(recipe, account, state))
    trackers = Trackers.open(
        recipe.trackers,
        folder,
        recipe.model_dump(mode="json"),
        step=0 if state is None else state.step,
        main=accelerator.is_main_process,
        show=lambda step, facts: progress("training", step, recipe.steps, facts),
    )
    if state is None:
        trackers.table(0, "data", Table(("files", "number"), tuple(account.counts.items())))
    model.prediction = recipe.objective.prediction or model.prediction  # previews are drawn by what is trained
    asked = None
    draws = accelerator.is_main_process or is_sharded(accelerator)
    if recipe.previews.prompts and draws and not recipe.adapter.trains_words:
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


def _begin(recipe: Recipe, folder: RunFolder, *, resume: bool) -> "Accelerator":
    """Look at all that can be looked at before anything is loaded; all processes have met when this returns."""
    if is_first_process():  # of several, one writes
        folder.create()
    check_beginning(recipe, folder, resume=resume)
    recipe.model.check()
    accelerator = open_accelerator(recipe)
    check_spread(recipe, accelerator)
    recipe.optimizer.check(accelerator.device)
    if recipe.memory is not None:
        cap_memory(bytes_of_size(recipe.memory), accelerator.device)
    _compile_mode(recipe, accelerator)
    return accelerator


def _run(
    recipe: Recipe,
    model: DiffusionModel,
    account: Account,
    accelerator: "Accelerator",
    trackers: Trackers,
    trainable: Trainable,
) -> Run:
    seeds, folder = Seeds(recipe.seed), run_folder_of(recipe)
    if recipe.checkpointed_every is not None:
        model.use_gradient_checkpointing(recipe.checkpointed_every)
    if is_sharded(accelerator):
        shard(accelerator, model.denoiser)
        trainable.follow()
    flat = FlatGroups(trainable.groups(), whole=recipe.joins_tensors)
    optimizer = trainable.driven(recipe.optimizer.build(flat.groups), recipe.clip_norm)
    rates = {str(group["name"]): float(group["lr"]) for group in optimizer.param_groups}
    averaged_here = _prepare(accelerator, model, trainable, one_bucket=not recipe.adapter.makes_model)
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
        keeps=accelerator.is_main_process,
        words_change=recipe.adapter.trains_words,
    )

    def write(path: Path) -> Path:
        pictures = recipe.batch * recipe.accumulate * accelerator.num_processes
        facts = facts_of_run(recipe, account.training, model, clock, rates, pictures)
        return trainable.write(path, facts, recipe.export)

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
        sharded=is_sharded(accelerator),
        averaged_here=averaged_here,
        optimizer=accelerator.prepare_optimizer(optimizer),
        rates=rates,
        rate=recipe.rate,
        clip_norm=recipe.clip_norm,
        batches=batches,
        ahead=Ahead(make, accelerator.device, end=recipe.steps * recipe.accumulate),
        passing=_passing(_compile_mode(recipe, accelerator), model, trainable),
        ledger=Ledger(trackers, accelerator.device, examples=account.training, scaled=accelerator.scaler is not None),
        previews=previews,
        preview_every=recipe.previews.every,
        checkpoints=Checkpoints(folder, recipe.checkpoints),
        trackers=trackers,
        export=lambda: write(folder.result),
        export_adapter=(lambda: write(folder.adapter(clock.step))) if _keeps_adapters(recipe, accelerator) else None,
        held_out=_held_out(recipe, account, model),
    )


def _keeps_adapters(recipe: Recipe, accelerator: "Accelerator") -> bool:
    """Whether results on the way are kept: they are small, and lie whole in one process."""
    return bool(recipe.checkpoints.adapters) and not recipe.adapter.makes_model and not is_sharded(accelerator)


def _held_out(recipe: Recipe, account: Account, model: DiffusionModel) -> HeldOut | None:
    """The pictures that are kept back, out of the cache."""
    if not account.held_out:
        return None
    pictures = StillPictures(
        examples=account.held_out,
        settings=recipe.data,
        encoders=model.encoders(),
        seeds=Seeds(recipe.seed),
        live_words=recipe.adapter.trains_words,
    )
    return HeldOut(
        batches=pictures.batches(recipe.batch),
        every=recipe.held_out.every,
        objective=recipe.objective,
        model=model,
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


def _prepare(
    accelerator: "Accelerator", model: DiffusionModel, trainable: Trainable, *, one_bucket: bool
) -> tuple[Parameter, ...]:
    """Let accelerate take every trained network; gives the parameters whose gradients it does not average."""
    averaged_here: list[Parameter] = []
    words = set(model.text_parts.values())
    for part in trainable.parts:
        if part in words:
            # torch's wrapper for several processes waits for the gradients of all that a network gives back, and what
            # the last layer of Stable Diffusion XL's first text encoder gives back is never read: no wrapper around
            # those
            network = prepared(accelerator, model.network(part), wrapped=False)
            averaged_here += [own for own in network.parameters() if own.requires_grad]
        elif is_sharded(accelerator):
            continue
        else:
            network = spread(accelerator, model.network(part), one_bucket=one_bucket)
        model.set_network(part, network)
    return tuple(averaged_here)


def _facts(recipe: Recipe, account: Account, state: State | None) -> dict[str, object]:
    """What all processes of a run must have the same of, by the words for it."""
    return {
        "recipe": recipe.model_dump_json(exclude={"runs": True, "data": {"cache"}}),
        "pictures": (len(account.training), *(example.key for example in account.training[:1])),
        "checkpoint": None if state is None else state.step,
    }
