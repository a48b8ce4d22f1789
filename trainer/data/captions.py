"""Example -> the words that the text encoder reads. Pure functions of (seed, epoch, picture), all known beforehand."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from typing_extensions import Self

from trainer.core.seeds import Seeds
from trainer.core.settings import Settings
from trainer.data.example import Example
from trainer.data.tags import Tags, join_tags, part_tags, put_in_front, replace_mark, surround, tidy
from trainer.data.wildcards import has_choices, resolve

NO_WORDS: Final = ""  # the caption of a picture whose words were dropped


class CaptionRules(Settings):
    """How the words of a caption file become what the text encoder reads.

    In this order: one of several captions is taken; choices in braces are made; the fixed parts are set aside; the
    other tags are cut by the warm-up, shuffled, and dropped one by one; class words, prefix and suffix are put around;
    the trigger is put in front where it is missing. The secondary separator becomes the separator, and the keep
    separator goes, whatever else is on. A caption to which none of this applies stays as it was written, sign by sign.

    Captions of regularisation pictures stay as they are, apart from the choice among several, braces, the two
    separators, and dropout.
    """

    several: Literal["choose", "first", "join"] = "choose"
    """What to do with several captions of one picture: each in its turn, the first only, or all joined by spaces."""
    wildcards: bool = False
    """Whether `{red|green|}` in captions, prefix and suffix is a choice. Choices nest; an option may be empty. Braces
    without a bar, or that do not close, are text; write \\{ and \\} for braces and \\| for a bar inside a choice."""
    class_words: Literal["missing", "front"] = "missing"
    """Where the words of a folder `10_zwx girl` go: they are the caption of pictures that have none (`missing`), or
    stand also in front of every caption that lacks them (`front`)."""
    trigger: str = ""
    """The word that shall call what is learned; put in front of captions that lack it."""
    prefix: str = ""
    """Put before every caption, with a space; never shuffled or dropped."""
    suffix: str = ""
    """Put behind every caption, with a space unless it begins with the separator; never shuffled or dropped."""
    separator: str = Field(default=",", min_length=1)
    """The sign between tags; tags are joined by it and a space. A single space makes a tag of each word."""
    secondary_separator: str = ""
    """A sign that holds tags together while they are shuffled or dropped, such as `;`, and then becomes the
    separator."""
    keep_separator: str = ""
    """A mark in captions, such as `|||`: what stands before it stays in front, what stands behind a second one stays
    behind, and only the tags between are shuffled or dropped. Captions that have it do not follow keep_tags."""
    shuffle_tags: bool = False
    """Whether the tags change their order from epoch to epoch."""
    keep_tags: NonNegativeInt = 0
    """How many first tags stay in place when tags are shuffled or dropped; a tag that is the trigger comes first and
    stays."""
    tag_dropout: float = Field(default=0.0, ge=0, le=1)
    """How often each single tag is left out, where it is not fixed."""
    warmup_epochs: NonNegativeInt = 0
    """In so many first epochs only the first tags are shown, from `warmup_tags` in the first to all after the last.
    It is counted in epochs, so that all texts are known before the run; fixed tags are shown in addition."""
    warmup_tags: NonNegativeInt = 1
    """How many tags the first epoch shows, where there is a warm-up."""
    variants: PositiveInt = 4
    """How many forms each picture's words go through, epoch by epoch, where choices, order or dropped tags make them
    vary; each is encoded once and then cached. Several captions of a picture share them, each at least one."""
    dropout: float = Field(default=0.0, ge=0, le=1)
    """How often a picture is shown without words, so that guidance keeps working."""
    drop_every: NonNegativeInt = 0
    """In every n-th epoch all pictures are shown without words; 0: in none."""

    @model_validator(mode="after")
    def _marks_can_be_told_apart(self) -> Self:
        if any(sign.isalnum() for sign in self.separator + self.secondary_separator):
            raise ValueError("separator and secondary_separator must be signs, not letters or digits.")
        marks = [self.separator.strip(), self.secondary_separator.strip(), self.keep_separator.strip()]
        used = [mark for mark in marks if mark]
        if len(set(used)) < len(used):
            raise ValueError("separator, secondary_separator and keep_separator must differ.")
        return self

    @property
    def handles_tags(self) -> bool:
        """Whether captions are taken apart into tags."""
        return self.shuffle_tags or self.tag_dropout > 0 or self.warmup_epochs > 0

    @property
    def drops_words(self) -> bool:
        """Whether a picture may be shown without words."""
        return self.dropout > 0 or self.drop_every > 0


def caption_of(example: Example, rules: CaptionRules, seeds: Seeds, epoch: int) -> str:
    """The words for `example` in this epoch (counted from 0), before dropout; the variants take turns."""
    # Epochs without words are no turns: else a variant that always met one would never be seen.
    turn = epoch - epoch // rules.drop_every if rules.drop_every else epoch
    variant = (seeds.integer("caption variant", example.key) + turn) % _variants(example, rules)
    return _text(example, rules, seeds, variant, epoch)


def is_dropped(rules: CaptionRules, seeds: Seeds, number: int, slot: int, epoch: int) -> bool:
    """Whether the words of this place in the run are dropped: batch `number`, place `slot` in it, `epoch` from 0."""
    if rules.drop_every and (epoch + 1) % rules.drop_every == 0:
        return True
    return rules.dropout > 0 and seeds.uniform("caption dropout", number, slot) < rules.dropout


def captions_needed(examples: Iterable[Example], rules_of: Callable[[Example], CaptionRules], seeds: Seeds) -> set[str]:
    """Every text that a run of any length can ask for: the variants, and those of the warm-up's epochs."""
    return set(needed_captions(examples, rules_of, seeds))


def needed_captions(
    examples: Iterable[Example], rules_of: Callable[[Example], CaptionRules], seeds: Seeds
) -> Iterator[str]:
    """The same one by one, many of them several times."""
    for example in examples:
        rules = rules_of(example)
        yield from _texts(example, rules, seeds)
        if rules.drops_words:
            yield NO_WORDS


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether the trigger stands in the caption as a word of its own, in whatever letters."""
    return re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class _Chance:
    """The choices of one variant of one caption; they follow from its words, so that a retouched picture keeps them."""

    seeds: Seeds
    written: str
    variant: int

    def order(self, length: int) -> list[int]:
        return self.seeds.permutation("tags", self.written, self.variant, length=length)

    def survives(self, length: int, dropout: float) -> list[bool]:
        import torch

        generator = self.seeds.generator("tag dropout", self.written, self.variant)
        return (torch.rand(length, generator=generator, dtype=torch.float64) >= dropout).tolist()

    def resolve(self, part: str, text: str) -> str:
        """`text` with its choices made; n variants in a row take each of n options once."""
        root = self.seeds.integer("wildcards", part, self.written)

        def pick(place: int, count: int) -> int:
            full_rounds = self.variant // count
            return (self.seeds.integer("wildcard", root, place, full_rounds) + self.variant) % count

        return resolve(text, pick)


def _texts(example: Example, rules: CaptionRules, seeds: Seeds) -> Iterator[str]:
    for variant in range(_variants(example, rules)):
        yield _text(example, rules, seeds, variant, rules.warmup_epochs)
    for epoch in range(rules.warmup_epochs):
        yield caption_of(example, rules, seeds, epoch)


def _written(example: Example, rules: CaptionRules) -> tuple[str, ...]:
    """The captions that take turns."""
    if len(example.captions) < 2 or rules.several == "first":
        return (example.caption,)
    if rules.several == "join":
        return (" ".join(text for text in example.captions if text),)
    return example.captions


def _variants(example: Example, rules: CaptionRules) -> int:
    written = _written(example, rules)
    if not any(_varies(text, example, rules) for text in written):
        return len(written)
    return -(-rules.variants // len(written)) * len(written)  # each caption as often as the others


def _varies(written: str, example: Example, rules: CaptionRules) -> bool:
    around = () if example.regularisation else (rules.prefix, rules.suffix)
    if rules.wildcards and any(has_choices(text) for text in (written, *around)):
        return True
    if example.regularisation or not (rules.shuffle_tags or rules.tag_dropout > 0):
        return False
    return len(_tags(written, example, rules).movable) > (0 if rules.tag_dropout > 0 else 1)


def _text(example: Example, rules: CaptionRules, seeds: Seeds, variant: int, epoch: int) -> str:
    """One variant of the words, as they stand in this epoch of the warm-up."""
    alternatives = _written(example, rules)
    round_, place = divmod(variant, len(alternatives))
    written = alternatives[place]
    chance = _Chance(seeds, written, round_)
    body = _resolved("caption", written, rules, chance)
    if example.regularisation:
        return _plain(body, rules)
    if rules.handles_tags:
        tags = _tags(body, example, rules)
        body = join_tags(tags.but(_shown(tags.movable, rules, chance, epoch)), rules.separator)
    caption = _plain(body, rules)
    if _leads(example, rules):
        caption = _with(_plain(example.class_words, rules), caption, rules)
    if rules.prefix or rules.suffix:
        prefix = _plain(_resolved("prefix", rules.prefix, rules, chance), rules)
        suffix = _plain(_resolved("suffix", rules.suffix, rules, chance), rules)
        caption = surround(prefix, caption, suffix, rules.separator)
    return _with(rules.trigger, caption, rules)


def _with(first: str, caption: str, rules: CaptionRules) -> str:
    """The caption with `first` in front of it where it lacks it."""
    if not first or has_trigger(caption, first):
        return caption
    return put_in_front(first, caption, rules.separator)


def _resolved(part: str, text: str, rules: CaptionRules, chance: _Chance) -> str:
    if not rules.wildcards:
        return text
    resolved = chance.resolve(part, text)
    return tidy(resolved, rules.separator) if has_choices(text) else resolved


def _plain(text: str, rules: CaptionRules) -> str:
    """The text without the marks that are only for us."""
    text = replace_mark(text, rules.keep_separator.strip(), rules.separator)
    return replace_mark(text, rules.secondary_separator.strip(), rules.separator)


def _leads(example: Example, rules: CaptionRules) -> bool:
    return rules.class_words == "front" and bool(example.class_words)


def _tags(text: str, example: Example, rules: CaptionRules) -> Tags:
    own = [rules.trigger, example.class_words] if _leads(example, rules) else [rules.trigger]
    return part_tags(text, rules.separator, rules.keep_separator.strip(), rules.keep_tags, own)


def _shown(movable: tuple[str, ...], rules: CaptionRules, chance: _Chance, epoch: int) -> list[str]:
    """The tags that this variant shows of those that may move, in its order."""
    count = len(movable)
    if epoch < rules.warmup_epochs and count > rules.warmup_tags:
        count = rules.warmup_tags + epoch * (count - rules.warmup_tags) // rules.warmup_epochs
    places = chance.order(count) if rules.shuffle_tags else list(range(count))
    if rules.tag_dropout > 0:
        survives = chance.survives(len(movable), rules.tag_dropout)
        places = [place for place in places if survives[place]]
    return [movable[place] for place in places]
