"""Example -> words: trigger, prefix and suffix, shuffled tags. Pure functions of (seed, epoch, picture)."""

import re
from collections.abc import Iterable

from pydantic import Field, NonNegativeInt, PositiveInt

from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.data.example import Example

NO_WORDS = ""  # the caption of a picture whose words were dropped


class CaptionRules(Settings):
    """How the words of a caption file become what the text encoder reads.

    In this order: tags are shuffled; prefix and suffix are put around; the trigger is put in front where it is missing.
    Captions of regularisation pictures stay as they are, apart from dropout.
    """

    trigger: str = ""
    """The word that shall call what is learned; put in front of captions that lack it."""
    prefix: str = ""
    """Put before every caption, with a space."""
    suffix: str = ""
    """Put behind every caption, with a space."""
    shuffle_tags: bool = False
    """Whether the parts between commas change their order from epoch to epoch."""
    keep_tags: NonNegativeInt = 0
    """How many first tags stay in place when tags are shuffled; a tag that is the trigger comes first and stays."""
    variants: PositiveInt = 4
    """How many orders of its tags each picture goes through; each is encoded once and then cached."""
    dropout: float = Field(default=0.0, ge=0, le=1)
    """How often a picture is shown without words, so that guidance keeps working."""


def caption_of(example: Example, rules: CaptionRules, seeds: Seeds, epoch: int) -> str:
    """The words for `example` in this epoch, before dropout; the variants take turns."""
    count = _variants(example, rules)
    first = seeds.integer("caption variant", example.key) % count
    return _variant(example, rules, seeds, (first + epoch) % count)


def is_dropped(rules: CaptionRules, seeds: Seeds, number: int, slot: int) -> bool:
    """Whether the words of this place in the run are dropped."""
    return rules.dropout > 0 and seeds.uniform("caption dropout", number, slot) < rules.dropout


def captions_needed(examples: Iterable[Example], rules: CaptionRules, seeds: Seeds) -> set[str]:
    """Every text that a run of any length can ask for."""
    needed = {
        _variant(example, rules, seeds, variant) for example in examples for variant in range(_variants(example, rules))
    }
    return needed | {NO_WORDS} if rules.dropout > 0 else needed


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether the trigger stands in the caption as a word of its own, in whatever letters."""
    return re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE) is not None


def _variants(example: Example, rules: CaptionRules) -> int:
    shuffled = rules.shuffle_tags and not example.regularisation
    return rules.variants if shuffled and len(_movable(example, rules)[1]) > 1 else 1


def _variant(example: Example, rules: CaptionRules, seeds: Seeds, variant: int) -> str:
    if example.regularisation:
        return example.caption
    caption = example.caption
    if rules.shuffle_tags:
        kept, movable = _movable(example, rules)
        # By the caption and not by the picture, so that a retouched picture needs no new words.
        order = seeds.permutation("tags", example.caption, variant, length=len(movable))
        caption = ", ".join((*kept, *(movable[place] for place in order)))
    caption = " ".join(part for part in (rules.prefix, caption, rules.suffix) if part)
    if rules.trigger and not has_trigger(caption, rules.trigger):
        caption = f"{rules.trigger}, {caption}" if caption else rules.trigger
    return caption


def _movable(example: Example, rules: CaptionRules) -> tuple[list[str], list[str]]:
    """The tags that stay in front, and the others."""
    tags = [tag.strip() for tag in example.caption.split(",") if tag.strip()]
    own = [tag for tag in tags if rules.trigger and tag.casefold() == rules.trigger.casefold()]
    tags = own + [tag for tag in tags if tag not in own]
    kept = max(rules.keep_tags, len(own))
    return tags[:kept], tags[kept:]
