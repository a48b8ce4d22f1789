"""A short run on the small model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe


@pytest.fixture
def recipe_of(small_model: Path, pictures: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Writes a recipe of a short run: accumulation, two buckets, short epochs, dropout and shuffling all in play."""

    def make(name: str = "short", **changes: Any) -> Recipe:
        content: dict[str, Any] = {
            "name": name,
            "model": {"kind": "sd1", "weights": str(small_model)},
            "precision": "float32",
            "data": {
                "sources": [{"kind": "folder", "path": str(pictures)}],
                "captions": {"trigger": "thing", "shuffle_tags": True, "dropout": 0.2},
                "resolution": 16,
                "flip": True,
                "cache": {"folder": str(tmp_path / "cache")},
            },
            "adapter": {"kind": "lora", "rank": 4, "dropout": 0.1, "layers": ["attention", "convolution"]},
            "optimizer": {"kind": "adamw_8bit", "rate": 1.0e-2},
            "rate": {"kind": "cosine", "warmup": 3},
            "batch": 2,
            "accumulate": 2,
            "steps": 8,
            "runs": str(tmp_path / "runs"),
            "checkpoints": {"every": 1, "keep": 100},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
        return read_recipe(path)

    return make


@pytest.fixture(autouse=True)
def each_is_fresh(fresh_accelerate: None) -> None:
    """Precisions differ between tests."""
