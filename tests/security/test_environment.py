"""What a run's folder says of the machine and the versions that it began with."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.beginning import run_folder_of, write_beginning
from trainer.recipe.reading import read_recipe


@pytest.mark.parametrize(
    "changed", [{"packages": {"torch": "1.0"}}, {"python": "3.0"}, {"device": "another"}, {"trainer": "0.0"}]
)
def test_other_versions_are_told_on_resume(
    recipe_file: Callable[..., Path], changed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = read_recipe(recipe_file())
    folder = run_folder_of(recipe)
    folder.create()
    model: Any = SimpleNamespace(revision=None)  # of a model it is asked for this alone
    with caplog.at_level(logging.WARNING, "trainer"):
        write_beginning(recipe, model, folder)
        write_beginning(recipe, model, folder)
        assert "bits may differ" not in caplog.text
        said = json.loads(folder.environment.read_text(encoding="utf-8"))
        assert {"seed", "device", "packages", "deterministic algorithms"} <= said.keys()
        folder.environment.write_text(json.dumps(said | changed), encoding="utf-8")
        write_beginning(recipe, model, folder)
    assert "bits may differ" in caplog.text
