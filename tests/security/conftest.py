"""A recipe file of a two-step run on the small model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def recipe_file(small_model: Path, pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe; top-level keys may be changed."""

    def make(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "name": "tried",
            "model": {"kind": "sd1", "weights": str(small_model)},
            "precision": "float32",
            "data": {
                "sources": [{"kind": "folder", "path": str(pictures)}],
                "resolution": 16,
                "cache": {"folder": str(tmp_path / "cache")},
            },
            "adapter": {"kind": "lora", "rank": 2},
            "optimizer": {"kind": "adamw", "rate": 1.0e-3},
            "batch": 2,
            "steps": 2,
            "runs": str(tmp_path / "runs"),
        }
        path = tmp_path / "tried.yaml"
        path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
        return path

    return make
