"""A recipe file of a two-step run that draws pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PREVIEWS: dict[str, Any] = {"every": 0, "prompts": ["thing, red ball"], "size": 16, "draw": {"steps": 2}}


@pytest.fixture
def recipe_file(recipe_file: Callable[..., Path]) -> Callable[..., Path]:
    """As for all tests, with previews."""

    def make(**changes: Any) -> Path:
        return recipe_file(**({"previews": PREVIEWS} | changes))

    return make
