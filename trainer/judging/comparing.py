"""Several runs side by side: asked the same, and in what their recipes differ."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer.core.errors import RecipeError
from trainer.core.progress import Phases
from trainer.core.redacting import redacted
from trainer.evaluation.features import Features
from trainer.judging.evaluating import Evaluation, evaluate
from trainer.judging.pictures import RunPictures
from trainer.judging.questions import Questions, questions_for
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe

_APART: Final = ("name", "runs", "trackers", "data.cache", "checkpoints", "previews")  # decide nothing of the result
_LONGEST: Final = 60  # signs of a value


def differences(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """The keys in which recipes differ, as they stand in a recipe, each with one value a run; secrets are taken out."""
    flat = [_flat(redacted(recipe.model_dump(mode="json"))) for recipe in recipes]
    keys = sorted({key for one in flat for key in one})
    found: list[dict[str, Any]] = []
    for key in keys:
        values = [_shown(one.get(key)) for one in flat]
        if len(set(values)) > 1 and not any(key == apart or key.startswith(f"{apart}.") for apart in _APART):
            found.append({"key": key, "values": values})
    return found


def _flat(content: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{under}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return flat


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def evaluate_all(
    folders: Sequence[Path],
    prompts: Sequence[str],
    seeds: int,
    features: Features,
    strengths: Sequence[float],
    progress: Phases,
) -> list[Evaluation]:
    """Every run, asked the same: the prompts of the first, where none are given.

    Raises:
        TrainerError: as of `evaluate`, or two of the runs have one folder.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RecipeError("A run is named twice.", where="the command line", mend="Name different runs.")
    asked: Questions | None = None
    found: list[Evaluation] = []
    for folder in folders:
        recipe = read_recipe(folder / "recipe.yaml")
        pictures = RunPictures.of(recipe, progress)
        asked = asked or questions_for(recipe, pictures.training, prompts, seeds)
        found.append(evaluate(folder, pictures, asked, features, progress, strengths))
    return found
