"""A recipe to begin with, from what is known of the pictures, the base model and the memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Literal

from trainer.core.device import Precision
from trainer.data.captions import has_trigger
from trainer.data.example import Example
from trainer.recipe.parsing import inline

_NEARLY_ALL = 0.8


class Kind(str, Enum):
    """What shall be learned."""

    character = "character"
    style = "style"
    domain = "domain"


@dataclass(frozen=True, slots=True)
class _Habit:
    """What has proved itself for one kind."""

    views: int  # how often each picture is seen in the run
    fewest: int  # pictures seen in the run, at least
    most: int  # and at most
    rank: int
    layers: tuple[str, ...]
    largest_batch: int
    title: str


_HABITS = {
    Kind.character: _Habit(60, 1500, 4000, 16, ("attention", "convolution"), 4, "A character LoRA"),
    Kind.style: _Habit(30, 2000, 6000, 16, ("attention", "convolution"), 4, "A style LoRA"),
    Kind.domain: _Habit(10, 4000, 200_000, 32, ("transformer", "convolution"), 16, "A LoRA for a whole field"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a recipe says so that it fits into memory and is quick."""

    batch: int
    checkpointing: bool | Literal["half"] = False
    quantize: str = "none"
    resident: float = 1.0
    note: str = ""  # what it needs, for a person


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What a recipe is proposed for."""

    name: str
    kind: Kind
    images: str  # the folder, as a recipe names it
    examples: Sequence[Example]
    base: str  # as `model.weights` names it
    bundled: bool  # the small model of the package: other rates, and memory is no question
    resolution: int  # pixels a side that the base was trained for
    precision: Precision
    pace: Pace


def largest_batch(kind: Kind, examples: Sequence[Example], *, bundled: bool) -> int:
    """Pictures at once beyond which nothing is gained."""
    return 8 if bundled else max(1, min(_HABITS[kind].largest_batch, len(examples)))


def propose(occasion: Occasion) -> str:
    """A recipe as text: short, with reasons beside what is not plain; it can be run as it stands."""
    habit = _HABITS[occasion.kind]
    pace = occasion.pace
    batch, checkpointing = pace.batch, str(pace.checkpointing).lower()
    seen = min(max(habit.views * len(occasion.examples), habit.fewest), habit.most)
    steps = 40 * max(1, round(seen / batch / 40))
    every = steps // 4
    trigger = _trigger(occasion)
    captions = "{dropout: 0.1}" if trigger is None else f"{{trigger: {inline(trigger)}, dropout: 0.1}}"
    repeats = _repeats(occasion.examples)
    source = f"{{kind: folder, path: {inline(occasion.images)}{f', repeats: {repeats}' if repeats > 1 else ''}}}"
    rate = "2.0e-3" if occasion.bundled else "1.0e-4"
    lines = [
        "# yaml-language-server: $schema=recipe.schema.json",
        *(f"# {line}" for line in _header(occasion, habit, steps * batch)),
        f"name: {inline(occasion.name)}",
        f"model: {{kind: {'sd1' if occasion.bundled else 'auto'}, weights: {inline(occasion.base)}{_kept(pace)}}}",
        f"precision: {occasion.precision.value}",
        "data:",
        f"  sources: [{source}]",
        f"  captions: {captions}   # dropout: now and then no words, which keeps guidance alive",
        f"  resolution: {occasion.resolution}",
        f"adapter: {{kind: lora, rank: {habit.rank}, alpha: {habit.rank}, layers: {inline(list(habit.layers))}}}",
        f"optimizer: {{kind: adamw_8bit, rate: {rate}}}",
        f"rate: {{kind: cosine, warmup: {min(100, max(1, steps // 15))}}}",
        f"batch: {batch}",
        f"steps: {steps}   # each picture is seen about {round(steps * batch / len(occasion.examples))} times",
        f"gradient_checkpointing: {checkpointing}   # true: slower, but needs far less memory; half: between",
        "previews:",
        f"  every: {every}",
        "  prompts:   # write here what you want to draw with the result",
        *(f"    - {inline(prompt)}" for prompt in _prompts(occasion, trigger)),
        f"checkpoints: {{every: {every}, keep: 2}}",
    ]
    return "\n".join(lines) + "\n"


def _header(occasion: Occasion, habit: _Habit, seen: int) -> list[str]:
    examples = occasion.examples
    sides = [min(example.size) for example in examples]
    lines = [f"{habit.title} from {len(examples)} pictures; {seen} are seen in the run. Change what you like."]
    silent = sum(not example.caption for example in examples)
    if silent:
        lines.append(
            f"{silent} pictures have no caption; a text file of the same name beside a picture is its caption."
        )
    if median(sides) < occasion.resolution:
        lines.append(f"Most pictures are smaller than {occasion.resolution} pixels and will be enlarged.")
    if occasion.pace.note:
        lines.append(occasion.pace.note)
    lines.append("`trainer explain KEY` tells what a key means.")
    return lines


def _kept(pace: Pace) -> str:
    """How the base's weights are kept, where not as they are."""
    bits = "" if pace.quantize == "none" else f", quantize: {pace.quantize}"
    return bits + (f", resident: {pace.resident:g}" if pace.resident < 1 else "")


def _repeats(examples: Sequence[Example]) -> int:
    """So many that an epoch is no handful of batches; folders in the form `10_name` have said it already."""
    if any(example.repeats > 1 for example in examples):
        return 1
    return max(1, round(100 / len(examples)))


def _trigger(occasion: Occasion) -> str | None:
    """The words that nearly all captions share, if they do; else the recipe's name."""
    if occasion.kind is Kind.domain:
        return None
    captions = [example.caption for example in occasion.examples if example.caption]
    tags = Counter(tag for caption in captions for tag in dict.fromkeys(map(str.strip, caption.split(","))))
    shared = [tag for tag, count in tags.items() if tag and count >= _NEARLY_ALL * len(captions)]
    if len(captions) > 1 and shared:
        return shared[0]
    return f"{occasion.name} style" if occasion.kind is Kind.style else occasion.name


def _prompts(occasion: Occasion, trigger: str | None) -> list[str]:
    """Two captions as the run will read them, and one prompt that must stay as the base draws it."""
    captions = list(dict.fromkeys(example.caption for example in occasion.examples if example.caption))
    some = [captions[0], captions[len(captions) // 2]] if len(captions) > 1 else captions
    if trigger is not None:
        some = [text if has_trigger(text, trigger) else f"{trigger}, {text}" for text in some]
    return list(dict.fromkeys([*([trigger] if trigger else []), *some, "a red heart"]))
