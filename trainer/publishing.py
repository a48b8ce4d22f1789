"""What the file that comes out of a run says of itself."""

from collections import Counter
from collections.abc import Mapping

from PIL import Image

from trainer.core.clock import Clock
from trainer.core.run_folder import RunFolder
from trainer.data.batches import DataSettings
from trainer.data.examples import ExampleTable
from trainer.data.tags import split_tags
from trainer.evaluation.previews import picture_name
from trainer.families.model import DiffusionModel
from trainer.recipe.recipe import Recipe
from trainer.weights.metadata import TrainingFacts
from trainer.weights.thumbnails import as_thumbnail


def facts_of_run(
    recipe: Recipe,
    examples: ExampleTable,
    model: DiffusionModel,
    clock: Clock,
    rates: Mapping[str, float],
    batch: int,
) -> TrainingFacts:
    """What may be published of a run as far as it has come.

    Args:
        recipe: of the run.
        examples: all that are trained on; read only where tags are counted.
        model: that is trained.
        clock: of the run.
        rates: the highest learning rate of each trained part, the denoiser's first.
        batch: pictures a step, over all processes and passes.
    """
    return TrainingFacts(
        name=recipe.name,
        family=model.family,
        prediction=model.prediction.kind,
        resolution=(recipe.data.resolution, recipe.data.resolution),
        steps=clock.step,
        epoch=clock.epoch,
        steps_asked=recipe.steps,
        batch=batch,
        seed=recipe.seed,
        optimizer=recipe.optimizer.kind,
        rate=next(iter(rates.values())),
        text_rates=tuple(rate for word, rate in rates.items() if word in model.text_parts),
        rate_schedule=recipe.rate.kind,
        precision=recipe.precision.value,
        base=recipe.model.weights,
        vae=recipe.model.vae,
        clip_skip=model.clip_skip,
        token_limit=model.token_limit,
        zero_terminal_snr=model.zero_terminal_snr,
        trigger=recipe.data.captions.trigger or None,
        tags=tag_counts(examples, recipe.data) if recipe.export.tag_counts else None,
        thumbnail=_thumbnail(recipe, clock) if recipe.export.thumbnail else None,
    )


def tag_counts(examples: ExampleTable, settings: DataSettings) -> dict[str, int]:
    """In how many pictures each tag stands, as their captions were written; class pictures do not count."""
    counts = Counter[str]()
    for example in examples:
        if not example.regularisation:
            separator = settings.rules_of(example).separator
            counts.update({tag for caption in example.captions for tag in split_tags(caption, separator)})
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _thumbnail(recipe: Recipe, clock: Clock) -> str | None:
    """The first prompt as it was drawn after the last step; None where no previews are drawn."""
    path = RunFolder(recipe.runs / recipe.name).previews(clock.step) / picture_name(0)
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return as_thumbnail(picture)
