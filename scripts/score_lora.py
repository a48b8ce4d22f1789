"""Says in numbers and on one sheet what a finished run has learned, and what it has spoiled.

usage: python scripts/score_lora.py RUN PROMPTS ORDINARY [--seeds 3]

RUN is a run folder; PROMPTS are prompts that call what was learned and are no training captions; ORDINARY are prompts
that have nothing to do with it. Each prompt is drawn with every seed, without the adapter and with it. The scores are
those of `trainer.evaluation.scores` in the built-in feature space, against the run's own pictures (references) and its
regularisation pictures (ordinary). The sheet and `scores.json` are written into RUN/scores/.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.core.errors import DataError, TrainerError
from trainer.core.files import write_atomically
from trainer.data.example import Example
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan
from trainer.drawing import open_for_drawing
from trainer.evaluation.features import BuiltIn, Rows
from trainer.evaluation.previews import save_png
from trainer.evaluation.scores import bleed, gap_closed, leave_one_out, likeness, share_nearer
from trainer.families.model import DiffusionModel
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe
from trainer.sampling.generate import generate
from trainer.sampling.grid import grid
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import DpmPlusPlus2M

FIRST_SEED = 1000  # far from the previews'


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures of one list of prompts, prompt by prompt within each seed."""

    without: list[Image.Image]
    with_adapter: list[Image.Image]


def main() -> None:
    """Draw, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("ordinary", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    try:
        score(arguments.run, arguments.prompts, arguments.ordinary, arguments.seeds)
    except TrainerError as error:
        raise SystemExit(str(error)) from error


def score(run: Path, prompts_file: Path, ordinary_file: Path, seeds: int) -> None:
    """Score one run; see the top of this file."""
    recipe = read_recipe(run / "recipe.yaml")
    examples = scan(recipe.data.parts, recipe.data.limits).accepted
    prompts, ordinary_prompts = lines_of(prompts_file), lines_of(ordinary_file)
    refuse_training_captions([*prompts, *ordinary_prompts], examples)
    references = features_of(recipe, [example for example in examples if not example.regularisation])
    ordinary = features_of(recipe, [example for example in examples if example.regularisation])

    base, resolution = open_for_drawing(run, "bundled", 0.0)
    adapted, _ = open_for_drawing(run, "bundled", 1.0)
    learned = draw_both(base, adapted, prompts, seeds, resolution)
    kept = draw_both(base, adapted, ordinary_prompts, seeds, resolution)

    scores = numbers(learned, kept, references, ordinary, seeds)
    folder = run / "scores"
    write_atomically(folder / "scores.json", json.dumps(scores, indent=1) + "\n")
    save_png(folder / "learned.png", sheet(learned, prompts))
    save_png(folder / "kept.png", sheet(kept, ordinary_prompts))
    print(json.dumps(scores, indent=1))
    print(f"Sheets: {folder}/learned.png and kept.png")


def numbers(learned: Drawn, kept: Drawn, references: Rows, ordinary: Rows, seeds: int) -> dict[str, object]:
    """All scores; likeness and gap over all seeds and for each."""
    encode = BuiltIn().load()
    real = leave_one_out(references)
    without, with_adapter = encode(learned.without), encode(learned.with_adapter)
    per_seed = [
        gap_closed(likeness(a, references), likeness(b, references), real)
        for a, b in zip(_split(without, seeds), _split(with_adapter, seeds), strict=True)
    ]
    before, after = likeness(without, references), likeness(with_adapter, references)
    kept_without, kept_with = encode(kept.without), encode(kept.with_adapter)
    return {
        "likeness_without": round(before, 3),
        "likeness_with": round(after, 3),
        "likeness_real": round(real, 3),
        "gap_closed": round(gap_closed(before, after, real), 3),
        "gap_closed_per_seed": [round(gap, 3) for gap in per_seed],
        "nearer_to_references_without": round(share_nearer(without, references, ordinary), 3),
        "nearer_to_references_with": round(share_nearer(with_adapter, references, ordinary), 3),
        "bleed_without_per_seed": [bleed(part, references, ordinary) for part in _split(kept_without, seeds)],
        "bleed_with_per_seed": [bleed(part, references, ordinary) for part in _split(kept_with, seeds)],
        "ordinary_prompts": len(kept_with) // seeds,
        "seeds": seeds,
    }


def draw_both(
    base: DiffusionModel, adapted: DiffusionModel, prompts: Sequence[str], seeds: int, resolution: int
) -> Drawn:
    """Every prompt with every seed, without and with the adapter."""
    asked = [Prompt(text=text, seed=FIRST_SEED + seed) for seed in range(seeds) for text in prompts]
    settings, size = DrawSettings(batch=12), (resolution, resolution)
    return Drawn(*(generate(model, asked, DpmPlusPlus2M(), settings, size) for model in (base, adapted)))


def sheet(drawn: Drawn, prompts: Sequence[str]) -> Image.Image:
    """The first seed, without the adapter above with it."""
    count = len(prompts)
    return grid([drawn.without[:count], drawn.with_adapter[:count]], ["without", "with"], prompts)


def features_of(recipe: Recipe, examples: Sequence[Example]) -> Rows:
    """Features of training pictures, [N F]."""
    opened = OpenSources(recipe.data.parts)
    return BuiltIn().load()([opened.picture(example, recipe.data.limits).image for example in examples])


def lines_of(path: Path) -> list[str]:
    """The prompts in a file, one a line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def refuse_training_captions(prompts: Sequence[str], examples: Sequence[Example]) -> None:
    """Make sure that no prompt is a training caption: that would measure memory.

    Raises:
        DataError: one is.
    """
    known = {example.caption.casefold() for example in examples}
    copied = [prompt for prompt in prompts if prompt.casefold() in known]
    if copied:
        raise DataError(f"These prompts are training captions: {', '.join(copied)}.", mend="Ask for something new.")


def _split(rows: Rows, parts: int) -> list[Rows]:
    size = len(rows) // parts
    return [rows[start : start + size] for start in range(0, len(rows), size)]


if __name__ == "__main__":
    main()
