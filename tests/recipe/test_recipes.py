"""Every recipe that comes with the project reads, and agrees with the schema that editors use."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.recipe.documents import read_document
from trainer.recipe.reading import read_recipe, text_of, write_recipe
from trainer.recipe.recipe import Recipe
from trainer.recipe.schema import schema_text

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SCHEMA = FOLDER / "recipe.schema.json"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_and_can_be_written(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(write_recipe(recipe), encoding="utf-8")
    assert read_recipe(resolved) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_agrees_with_the_schema_and_names_it(path: Path) -> None:
    jsonschema: Any = pytest.importorskip("jsonschema")  # Any: it may be absent
    text = text_of(path)
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    validator = jsonschema.Draft202012Validator(json.loads(schema_text(Recipe)))
    _, value = read_document(text, str(path))
    assert [error.message for error in validator.iter_errors(value)] == []


def test_the_schema_itself_is_sound() -> None:
    jsonschema: Any = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_the_schema_file_is_up_to_date() -> None:
    written = SCHEMA.read_text(encoding="utf-8")
    assert written == schema_text(Recipe), "run: trainer explain --schema recipes/recipe.schema.json"


def test_there_are_recipes() -> None:
    """Or the tests above prove nothing."""
    assert {"character-lora", "style-lora"} <= {path.stem for path in RECIPES}
