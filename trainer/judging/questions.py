"""What every candidate is asked to draw."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.core.seeds import Seeds
from trainer.data.captions import caption_of, has_trigger
from trainer.data.examples import ExampleTable
from trainer.recipe.recipe import Recipe
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Sampler

FIRST_SEED: Final = 1000  # far from those of previews
_ORDINARY_SEEDS: Final = 2  # drift is measured pair by pair, where few suffice
_PROMPTS: Final = 4  # taken from captions, where the recipe has none
_BARE: Final = 2  # prompts whose trigger is taken out
_NEUTRAL: Final = ("a house", "a tree")


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The same for every candidate and every run: prompts, seeds, and how they are drawn."""

    subject: Sequence[str]  # prompts that call what was learned
    ordinary: Sequence[str]  # prompts that do not
    negative: str
    seeds: int
    settings: DrawSettings
    sampler: Sampler
    size: tuple[int, int]  # pixels, width and height
    first_seed: int = FIRST_SEED

    @property
    def ordinary_seeds(self) -> int:
        """How often an ordinary prompt is drawn."""
        return min(self.seeds, _ORDINARY_SEEDS)

    def prompts(self) -> list[Prompt]:
        """All that is drawn: subject prompts first; prompt by prompt, within a prompt seed by seed."""
        asked = [(text, self.seeds) for text in self.subject] + [(text, self.ordinary_seeds) for text in self.ordinary]
        return [
            Prompt(text=text, negative=self.negative, seed=self.first_seed + number)
            for text, count in asked
            for number in range(count)
        ]

    @property
    def count(self) -> int:
        """How many pictures show what was learned; the others are of ordinary prompts."""
        return len(self.subject) * self.seeds


def questions_for(recipe: Recipe, training: ExampleTable, given: Sequence[str], seeds: int) -> Questions:
    """What a run is asked.

    Prompts with the trigger call what was learned; where there is no trigger, all prompts do. Drift is measured on the
    others; where there are none, on some of the same with the trigger taken out, and on two of plain things.

    Args:
        recipe: of the run; its previews say how pictures are drawn.
        training: the pictures that were trained on.
        given: prompts that a person names; none: those of the recipe's previews, or captions of the training set.
        seeds: pictures a prompt.
    """
    previews, trigger = recipe.previews, recipe.data.captions.trigger
    texts = list(given or previews.prompts) or _captions(recipe, training)
    subject = [text for text in texts if not trigger or has_trigger(text, trigger)] or texts
    ordinary = [text for text in texts if text not in subject]
    if not ordinary:
        bare = [_without(text, trigger) for text in subject] if trigger else []
        ordinary = [text for text in dict.fromkeys(bare) if text][:_BARE] + list(_NEUTRAL)
    side = previews.size or recipe.data.resolution
    return Questions(
        subject=subject,
        ordinary=ordinary,
        negative=previews.negative,
        seeds=seeds,
        settings=previews.draw,
        sampler=previews.sampler,
        size=(side, side),
    )


def _captions(recipe: Recipe, training: ExampleTable) -> list[str]:
    """Some captions of the training set, evenly spread."""
    own = training.select(~training.numbers("regularisation"))
    step = max(1, len(own) // _PROMPTS)
    examples = [own[place] for place in range(0, len(own), step)][:_PROMPTS]
    seeds = Seeds(recipe.seed)
    rules = [recipe.data.rules_of(example) for example in examples]
    found = [caption_of(one, rule, seeds, rule.warmup_epochs) for one, rule in zip(examples, rules, strict=True)]
    return list(dict.fromkeys(found))


def _without(text: str, trigger: str) -> str:
    """The prompt with the trigger taken out, in whatever letters it stands there."""
    return re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", "", text, flags=re.IGNORECASE).strip(" ,")
