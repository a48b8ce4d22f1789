"""Pictures that a run was trained on, to stand beside what it draws."""

import numpy as np
from PIL import Image

from trainer.core.errors import DataError
from trainer.core.log import logger
from trainer.core.progress import Phases
from trainer.data.opened import OpenSources
from trainer.preparing import scan_data
from trainer.recipe.recipe import Recipe


def training_pictures(recipe: Recipe, count: int, longest: int, progress: Phases) -> list[Image.Image]:
    """Some of the pictures that the recipe trains on, evenly spread; none, and a warning, where they are gone.

    Args:
        recipe: of the run.
        count: how many at most.
        longest: pixels; longer ones are made smaller.
        progress: told while they are looked for.
    """
    try:
        account = scan_data(recipe, progress)
        examples = account.training.select(~account.training.numbers("regularisation"))
        places = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(np.int64))
        opened = OpenSources(recipe.data.parts)
        pictures: list[Image.Image] = []
        for example in examples.take(places):
            picture = opened.picture(example, recipe.data.limits).image
            picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            pictures.append(picture)
    except DataError as error:
        logger.warning("The training pictures cannot be shown: %s", error.what)
        return []
    return pictures
