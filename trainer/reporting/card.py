"""The model card: what is published of a run, and nothing that a person has not seen before."""

import re
import string
from collections.abc import Sequence
from typing import Any, Final

from trainer import __version__
from trainer.core.files import printable
from trainer.recipe.recipe import Recipe
from trainer.reporting.programs import Program, Result, programs_for
from trainer.reporting.settings_shown import ShownSetting, settings_shown
from trainer.reporting.usage import is_public

_ESCAPED: Final = str.maketrans({sign: f"\\{sign}" for sign in string.punctuation if sign not in "',"})
_NO_BACKTICKS: Final = re.compile(r"[^`]+")
# What a card tells of a recipe: how it was trained. Not on what, where, or with which words.
_TOLD: Final = (
    "precision", "adapter.", "optimizer.", "rate.", "objective.", "ema", "batch", "accumulate", "steps", "clip_norm",
    "seed", "data.resolution", "data.flip", "data.captions.dropout", "data.captions.shuffle_tags", "export.precision",
    "export.layout",
)  # fmt: skip
_TITLES: Final = {
    "lora": "LoRA", "dora": "DoRA", "product": "adapter", "words": "textual inversion", "model": "fine-tuned model",
    "model folder": "fine-tuned model", "peft folder": "LoRA", "diffusers file": "LoRA",
}  # fmt: skip


def card_of(recipe: Recipe, result: Result, step: int, pictures: Sequence[tuple[str, str]], license_id: str) -> str:
    """A model card in Markdown, in which no word of the recipe is anything but a word.

    Args:
        recipe: of the run.
        result: what is published.
        step: after how many steps.
        pictures: file and prompt of each picture that is published beside it.
        license_id: as the hub knows licences, such as openrail++; "" says none.
    """
    title = _TITLES[result.nature]
    parts = [
        f"---\n{_front(recipe, result, pictures, license_id)}\n---\n",
        f"# {plain(result.name)}\n",
        f"A {title} for {plain(result.base)}, trained for {step:,} steps with sd-trainer {plain(__version__)}.\n",
    ]
    if result.trigger:
        parts.append(f"The trigger, which belongs into each prompt: {fenced(result.trigger)}")
    if pictures:
        parts += ["## Pictures\n", *(f"![{plain(prompt)}]({file})\n\n{plain(prompt)}\n" for file, prompt in pictures)]
    parts.append("## How to use it\n")
    parts += [_program(program) for program in programs_for(result) if program.name != "trainer"]
    parts += ["## How it was trained\n", _table(told_settings(recipe))]
    licence = f"Licence: {plain(license_id)}." if license_id else "No licence is stated here."
    parts.append(f"{licence} The licence of the base model holds for what is made from it.\n")
    return "\n".join(parts)


def told_settings(recipe: Recipe) -> list[ShownSetting]:
    """What the card tells of a recipe: settings of the training that differ from the defaults; no words, no paths."""
    rows = [row for row in settings_shown(recipe) if row.differs]
    return [row for row in rows if _is_told(row.key) and not any(sign in row.value for sign in "/\\")]


def plain(text: str) -> str:
    """`text` as Markdown that shows these very letters, on one line."""
    return printable(text).translate(_ESCAPED)


def fenced(text: str) -> str:
    """`text` as a block of code that it cannot end."""
    lines = [printable(line) for line in text.split("\n")]
    longest = max(len(run) for line in lines for run in _NO_BACKTICKS.split(line))
    fence = "`" * max(3, longest + 1)
    return "\n".join(["", f"{fence}text", *lines, fence, ""])


def _is_told(key: str) -> bool:
    private = ("adapter.start", "adapter.lora.start", "adapter.words")
    told = any(key == one or (one.endswith(".") and key.startswith(one)) for one in _TOLD)
    return told and not key.startswith(private)


def _front(recipe: Recipe, result: Result, pictures: Sequence[tuple[str, str]], license_id: str) -> str:
    """The card's data, as the hub reads them."""
    from huggingface_hub import ModelCardData

    weights = recipe.model.weights
    known: dict[str, Any] = {  # Any: what the hub's library takes
        "license": license_id or None,
        "base_model": weights.partition("@")[0] if is_public(weights) else None,
        "instance_prompt": printable(result.trigger) or None,
        "pipeline_tag": "text-to-image",
        "library_name": "diffusers",
        "tags": ["text-to-image", "stable-diffusion", result.nature.replace(" ", "-"), "sd-trainer"],
        "widget": [{"text": printable(prompt), "output": {"url": file}} for file, prompt in pictures] or None,
    }
    data = ModelCardData(**{key: value for key, value in known.items() if value is not None})
    return data.to_yaml().strip()


def _program(program: Program) -> str:
    head = f"**{program.name}**" + ("" if program.works else " (not with this file)")
    lines = [head, *(plain(words) for words in program.how)]
    return "\n\n".join(lines) + "\n" + (fenced(program.code) if program.code else "")


def _table(rows: Sequence[ShownSetting]) -> str:
    if not rows:
        return "With the defaults.\n"
    lines = ["| setting | value |", "|---|---|", *(f"| {plain(row.key)} | {plain(row.value)} |" for row in rows)]
    return "\n".join([*lines, ""])
