"""Does the base follow its prompts? The corpus pictures nearest to what it draws should bear the same label."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bundled_base.captions import CORE_LABELS, TRAINED_STYLES, Entry
from bundled_base.features import measure_scale, picture_features
from bundled_base.latents import Pictures
from bundled_base.networks import load_pipeline
from bundled_base.sampling import SamplingPlan, picture_grid, sample_pictures

GRID_COLUMNS = 10
GRID_ROWS = 8


@dataclass(frozen=True)
class Score:
    """Shares of 0..1 over the prompts; chance is about 0.001 and 0.01 for the labels."""

    prompts: int
    label_first: float  # the nearest corpus picture has the prompt's label
    label_in_ten: float  # one of the ten nearest has
    style_first: float  # the nearest corpus picture has the prompt's style
    likeness: float  # mean cosine to the nearest corpus picture

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.3g}" for name, value in asdict(self).items())


def pick_prompts(entries: Sequence[Entry], count: int, core_only: bool) -> list[int]:
    """Return the indices of the entries that the base is asked for: trained styles, no people."""
    asked = [
        index
        for index, entry in enumerate(entries)
        if entry.style in TRAINED_STYLES and not entry.shows_people and (entry.label in CORE_LABELS or not core_only)
    ]
    return random.Random(5).sample(asked, min(count, len(asked)))


def score_pictures(drawn: Pictures, asked: Sequence[Entry], entries: Sequence[Entry], pictures: Pictures) -> Score:
    """Return how often drawn pictures lie next to corpus pictures of the label they were asked for."""
    neighbours = [index for index, entry in enumerate(entries) if entry.kind == "emoji"]
    known = pictures[neighbours]
    scale = measure_scale(known)
    likeness = picture_features(drawn, scale) @ picture_features(known, scale).T  # [drawn known]
    nearest = np.argsort(-likeness, 1)[:, :10]
    found = [[entries[neighbours[place]] for place in row] for row in nearest.tolist()]
    count = len(asked)
    pairs = list(zip(found, asked, strict=True))
    return Score(
        prompts=count,
        label_first=sum(row[0].label == entry.label for row, entry in pairs) / count,
        label_in_ten=sum(any(other.label == entry.label for other in row) for row, entry in pairs) / count,
        style_first=sum(row[0].style == entry.style for row, entry in pairs) / count,
        likeness=float(likeness.max(1).mean()),
    )


def score_base(
    base: Path, entries: Sequence[Entry], pictures: Pictures, indices: Sequence[int], plan: SamplingPlan
) -> tuple[Score, Image.Image]:
    """Return the base's score on the captions of the given entries, and a grid.

    The grid's rows are corpus pictures over what the base drew for their captions.
    """
    asked = [entries[index] for index in indices]
    drawn = sample_pictures(load_pipeline(base), [f"{entry.label}, {entry.style}" for entry in asked], plan)
    score = score_pictures(np.stack([np.asarray(picture) for picture in drawn]), asked, entries, pictures)
    shown: list[Image.Image] = []
    labels: list[str] = []
    for start in range(0, min(len(drawn), GRID_ROWS * GRID_COLUMNS), GRID_COLUMNS):
        row = slice(start, start + GRID_COLUMNS)
        if len(drawn[row]) == GRID_COLUMNS:
            shown += [Image.fromarray(pictures[index]) for index in indices[row]]
            shown += drawn[row]
            labels += [entry.label for entry in asked[row]] * 2
    return score, picture_grid(shown or drawn, GRID_COLUMNS, labels or None)
