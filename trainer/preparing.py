"""Recipe -> data that is looked at and encoded: what comes before a run, and is all of `trainer cache`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from trainer.adapters.trainable import Surroundings
from trainer.core.device import Precision, pick_device
from trainer.core.errors import RecipeError
from trainer.core.files import replacing, write_atomically
from trainer.core.importing import import_libraries
from trainer.core.log import logger
from trainer.core.progress import Phases
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.data import planning
from trainer.data.account import MOST_LISTED, Account
from trainer.data.captions import captions_needed, needed_captions
from trainer.data.decoder import PictureWork
from trainer.data.encoding import WordsWork
from trainer.data.examples import ExampleTable
from trainer.data.filling import CacheReport, Needs, encode_again, fill_cache
from trainer.data.health.shapes import BucketCount, count_buckets, fit_all
from trainer.data.health.shares import Share, shares_of
from trainer.data.scanning import scan
from trainer.data.sources.folder import ImageFolder
from trainer.families.model import DiffusionModel
from trainer.loop.processes import meet
from trainer.recipe.recipe import Recipe
from trainer.sampling.class_pictures import draw_missing, missing_pictures

if TYPE_CHECKING:
    from accelerate import Accelerator


def prepare_data(
    recipe: Recipe, folder: RunFolder | None, accelerator: "Accelerator", progress: Phases
) -> tuple[DiffusionModel, Account, CacheReport]:
    """Look at the data and encode it, each process its share; when this returns, all of it is in the cache."""
    recipe.adapter.check_surroundings(surroundings_of(recipe, accelerator.num_processes))
    model = recipe.model.load(recipe.precision, accelerator.device)  # its networks come when they are first used
    recipe.adapter.check(model)  # a mistake is said before hours of encoding, not after
    recipe.adapter.check_export(model, recipe.export)
    with accelerator.main_process_first():  # the others find the pictures drawn, and the verdicts remembered
        draw_class_pictures(recipe, model, progress)
        account = look_at_data(recipe, folder if accelerator.is_main_process else None, progress)
    _check_new_words(recipe, account, model)
    share = planning.Share(rank=accelerator.process_index, world=accelerator.num_processes)
    report = cache_data(recipe, account, model, progress, share)
    accelerator.wait_for_everyone()
    return model, account, _of_all(report, accelerator)


def surroundings_of(recipe: Recipe, processes: int = 1) -> Surroundings:
    """What a recipe asks for beside its adapter, as far as adapters must know."""
    return Surroundings(
        export=recipe.export,
        optimizer=recipe.optimizer,
        precision=recipe.precision,
        accumulate=recipe.accumulate,
        processes=processes,
        asks_base=any(part.target == "base" for part in recipe.data.parts),
        frozen_base=recipe.model.quantize != "none" or recipe.model.resident < 1,
    )


def _check_new_words(recipe: Recipe, account: Account, model: DiffusionModel) -> None:
    """Make sure that every word which is to be learned stands in a caption.

    Raises:
        RecipeError: one does not.
    """
    for word in recipe.adapter.new_words:
        captions = needed_captions(account.training, recipe.data.rules_of, Seeds(recipe.seed))
        if not any(model.vocabulary.has(word, caption) for caption in captions):
            raise RecipeError(
                f"The new word {word} stands in no caption, so nothing would teach it.",
                where="adapter.words",
                mend=f'Set data.captions.trigger: "{word}", or write it into the captions.',
            )


def _of_all(report: CacheReport, accelerator: "Accelerator") -> CacheReport:
    """What all processes together have done."""
    if accelerator.num_processes == 1:
        return report
    own: Any = torch.tensor(astuple(report), device=accelerator.device)  # Any: reduce is typed for containers too
    of_all: Any = accelerator.reduce(own)
    return CacheReport(**dict(zip(asdict(report), of_all.tolist(), strict=True)))


def open_model(recipe: Recipe) -> DiffusionModel:
    """The recipe's base model on this machine's best device; its networks come when they are first used."""
    return recipe.model.load(recipe.precision, pick_device())


def needs_of(recipe: Recipe, account: Account, model: DiffusionModel) -> Needs:
    """What a run of the recipe asks of the cache."""
    return Needs(
        examples=account.training,
        settings=recipe.data,
        encoders=model.encoders(),
        seeds=Seeds(recipe.seed),
        batch=recipe.batch,
        words=not recipe.adapter.trains_words,
    )


def open_accelerator(recipe: Recipe) -> "Accelerator":
    """What spreads the run over devices and processes."""
    import_libraries(networks=False)
    accelerator = meet(recipe.precision.mixed, recipe.accumulate)
    if accelerator.device.type == "cuda" and recipe.precision is not Precision.float32:
        torch.set_float32_matmul_precision("high")  # TF32 for adapters: more digits than what comes into them has
    return accelerator


def scan_data(recipe: Recipe, progress: Phases) -> Account:
    """The account of the recipe's data; pictures that were looked at before are remembered beside the cache."""
    verdicts = recipe.data.cache.folder / "verdicts"
    account = scan(recipe.data.parts, recipe.data.limits, progress, memory=verdicts)
    return replace(account, accepted=recipe.held_out.kept_back(account.accepted))


def look_at_data(recipe: Recipe, folder: RunFolder | None, progress: Phases) -> Account:
    """Decode every picture, write the account into the run's folder, and stop where files are refused.

    Raises:
        DataError: a source does not exist or is empty, or files are refused and the recipe says to stop then.
    """
    account = scan_data(recipe, progress)
    if folder is not None:
        write_atomically(folder.data, json.dumps(account.as_json(), indent=1, ensure_ascii=False))
        if len(account.accepted) > MOST_LISTED:
            with replacing(folder.data.with_suffix(".arrow")) as temporary:
                account.accepted.write(temporary)
    account.check(recipe.data.on_reject)
    return account


def draw_class_pictures(recipe: Recipe, model: DiffusionModel, progress: Phases) -> None:
    """Let the base model draw the class pictures that the recipe's folders ask for and lack."""
    for part in recipe.data.parts:
        if isinstance(part, ImageFolder) and part.generate is not None:
            resolution = part.resolution or recipe.data.resolution
            drawn = draw_missing(model, part, part.generate, resolution, progress)
            if drawn:
                logger.info("%d class pictures drawn into %s.", drawn, part.title)


def cache_data(
    recipe: Recipe, account: Account, model: DiffusionModel, progress: Phases, share: planning.Share | None = None
) -> CacheReport:
    """Encode what is not in the cache yet, or this process's share of it, and give the encoders' memory back."""
    report = fill_cache(
        account.training,
        recipe.data,
        model.encoders(),
        Seeds(recipe.seed),
        batch=recipe.batch * (1 if share is None else share.world),
        words=not recipe.adapter.trains_words,
        share=share,
        progress=progress,
    )
    report += encode_still(recipe, account.held_out, model, progress, share)
    model.release_encoders()
    return report


def encode_still(
    recipe: Recipe,
    examples: ExampleTable,
    model: DiffusionModel,
    progress: Phases,
    share: planning.Share | None = None,
) -> CacheReport:
    """Encode pictures that are judged by themselves, as `evaluation.still` reads them; nothing where there are none."""
    if not examples:
        return CacheReport()
    words = not recipe.adapter.trains_words
    seeds = Seeds(recipe.seed)
    return fill_cache(examples, recipe.data, model.encoders(), seeds, words=words, share=share, progress=progress)


def mend_cache(
    recipe: Recipe, model: DiffusionModel, pictures: Sequence[PictureWork], words: Sequence[WordsWork]
) -> None:
    """Make entries anew that were found damaged while training, and give the encoders' memory back."""
    encode_again(recipe.data, model.encoders(), pictures=pictures, words=words)
    model.release_encoders()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """What a run will do with its data."""

    shares: list[Share]
    buckets: list[BucketCount]
    pictures: int  # that are trained on
    showings: int  # in one epoch
    batches: int  # in one epoch, of one process
    passes: int  # batches in the whole run
    entries: int  # latents in the cache
    latent_bytes: int  # that they take
    texts: int  # text states in the cache; none where the text encoders are trained
    to_draw: int  # class pictures that are missing yet, and in none of these numbers

    def lines(self) -> list[str]:
        """The numbers as a person reads them."""
        first = [f"first:     the base model draws {self.to_draw:,} class pictures; they come to these numbers"]
        return [
            *(first if self.to_draw else ()),
            f"pictures:  {self.pictures:,}, shown {self.showings:,} times in an epoch of {self.batches:,} batches",
            f"run:       {self.passes:,} batches, {self.passes / self.batches:.1f} epochs, in one process",
            f"cache:     {self.entries:,} latents of {self.latent_bytes / 2**20:,.1f} MiB, {self.texts:,} texts",
        ]


def plan_data(recipe: Recipe, progress: Phases) -> DataPlan:
    """What a run of this recipe will do with its data; no weights are loaded."""
    account = scan_data(recipe, progress)
    account.check(recipe.data.on_reject)
    model = recipe.model.load(recipe.precision, torch.device("cpu"))  # its networks stay on the disk
    recipe.adapter.check(model)
    latent, seeds = model.latent, Seeds(recipe.seed)
    fitting = fit_all(account, recipe.data, scale=latent.scale, batch=recipe.batch)
    counts = count_buckets(account, fitting, recipe.batch)
    examples = account.training
    kept_back = account.accepted.numbers("held_out").tolist()
    buckets = [bucket for bucket, held in zip(fitting.buckets, kept_back, strict=True) if not held]
    cuts = [len(recipe.data.cuts_of(example, bucket)) for example, bucket in zip(examples, buckets, strict=True)]
    numbers = [bucket.width * bucket.height // latent.scale**2 * latent.channels for bucket in buckets]
    return DataPlan(
        shares=shares_of(account),
        buckets=counts,
        pictures=len(examples),
        showings=sum(count.showings for count in counts),
        batches=sum(count.batches for count in counts),
        passes=recipe.steps * recipe.accumulate,
        entries=sum(cuts),
        latent_bytes=sum(2 * 2 * many * count for many, count in zip(numbers, cuts, strict=True)),  # mean, deviation
        to_draw=sum(len(missing_pictures(part)) for part in recipe.data.parts if isinstance(part, ImageFolder)),
        texts=0 if recipe.adapter.trains_words else len(captions_needed(examples, recipe.data.rules_of, seeds)),
    )
