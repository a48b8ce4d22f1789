"""The previews of a run, prompt by prompt, so that a reader sees what was learned when."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.core.threads import in_order
from trainer.reporting.pictures import Embedded, embed, evenly, open_picture
from trainer.reporting.record import RunRecord

_LETTERS: Final = 10_500_000  # of all previews together
_LONGEST: Final = 512  # pixels
_ENOUGH: Final = 16_000  # letters: a picture of 256 pixels is at home in so many
_PROMPTS: Final = 48
_TEXT: Final = 600  # letters of a prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """One prompt through the run."""

    prompt: str
    steps: tuple[int, ...]  # of which there is a picture
    frames: tuple[Embedded, ...]  # one a step
    base: Embedded | None  # as the base model drew it

    @property
    def last(self) -> Embedded:
        """The newest picture."""
        return self.frames[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All prompts through the run."""

    films: tuple[Film, ...]
    steps: tuple[int, ...]  # that are shown, without the base's
    left_out: str  # what is not shown, in words; "" where everything is


def timeline_of(record: RunRecord, letters: int = _LETTERS) -> Timeline:
    """The previews of a run, made small enough to take together at most `letters` letters, or thinned out evenly."""
    previews = record.previews
    steps = [step for step in previews if step > 0]
    prompts = sorted({place for pictures in previews.values() for place in pictures})
    shown_prompts = evenly(prompts, _PROMPTS)
    most_steps = max(2, letters // _ENOUGH // max(len(shown_prompts), 1) - 1)
    shown_steps = evenly(steps, most_steps)
    count = len(shown_prompts) * (len(shown_steps) + 1)
    share = letters // max(count, 1)
    texts = record.recipe.previews.prompts if record.recipe is not None else ()
    wanted = [(place, step) for place in shown_prompts for step in (0, *shown_steps)]
    files = [previews.get(step, {}).get(place) for place, step in wanted]
    made = dict(zip(wanted, in_order(lambda file: _frame(file, share), files), strict=True))
    films = [
        film
        for place in shown_prompts
        if (film := _film(_text(texts, place), {step: made[place, step] for step in (0, *shown_steps)})) is not None
    ]
    return Timeline(
        films=tuple(films),
        steps=tuple(sorted({step for film in films for step in film.steps})),
        left_out=_left_out(len(steps), len(shown_steps), len(prompts), len(shown_prompts)),
    )


def _film(prompt: str, made: Mapping[int, Embedded | None]) -> Film | None:
    """A prompt's pictures by step; step 0 is the base model's."""
    base = made.get(0)
    frames = {step: frame for step, frame in made.items() if frame is not None and step > 0}
    if not frames and base is not None:
        frames = {0: base}
    return Film(prompt=prompt, steps=tuple(frames), frames=tuple(frames.values()), base=base) if frames else None


def _frame(path: Path | None, share: int) -> Embedded | None:
    picture = None if path is None else open_picture(path)
    return None if picture is None else embed(picture, _LONGEST, share)


def _text(texts: Sequence[str], place: int) -> str:
    text = texts[place] if place < len(texts) else f"prompt {place + 1}"
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"


def _left_out(steps: int, shown_steps: int, prompts: int, shown_prompts: int) -> str:
    """What was thinned out, in words."""
    parts: list[str] = []
    if shown_steps < steps:
        each = math.ceil(steps / max(shown_steps, 1))
        parts.append(f"{shown_steps} of {steps} previews are shown, evenly spread (about every {_ordinal(each)})")
    if shown_prompts < prompts:
        parts.append(f"{shown_prompts} of {prompts} prompts are shown")
    return f"So that the page stays small, {' and '.join(parts)}; all lie in the run's folder." if parts else ""


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{suffix}"
