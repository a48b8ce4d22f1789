"""What a finished run's file says of its pictures: nothing, unless a person asks for it."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer.assemble import assemble
from trainer.core.progress import Silence
from trainer.core.tensors import read_header
from trainer.data.batches import DataSettings
from trainer.data.example import Example, Size
from trainer.data.examples import ExampleTable
from trainer.loop.train import train
from trainer.publishing import tag_counts
from trainer.recipe.recipe import Recipe


def example(number: int, *captions: str, regularisation: bool = False) -> Example:
    return Example(
        source=0,
        locator=f"{number}.png",
        name=f"{number}.png",
        key=f"{number:064x}",
        size=Size(64, 64),
        captions=captions,
        regularisation=regularisation,
    )


def test_a_tag_counts_once_a_picture_and_class_pictures_do_not_count(tmp_path: Path) -> None:
    settings = DataSettings.model_validate({"sources": [{"kind": "folder", "path": tmp_path}], "resolution": 64})
    examples = ExampleTable.of(
        [
            example(0, "cat, red, cat", "cat, big"),
            example(1, "dog,  red "),
            example(2),
            example(3, "red", regularisation=True),
        ]
    )
    assert tag_counts(examples, settings) == {"red": 2, "big": 1, "cat": 1, "dog": 1}
    assert next(iter(tag_counts(examples, settings))) == "red"


@pytest.mark.parametrize("asked", [False, True])
def test_a_file_tells_of_tags_and_carries_a_picture_only_where_it_is_asked_to(
    recipe_of: Callable[..., Recipe], asked: bool
) -> None:
    export = {"tag_counts": asked, "thumbnail": asked}
    previews = {"every": 100, "prompts": ["thing"], "draw": {"steps": 1}}
    recipe = recipe_of(steps=1, accumulate=1, export=export, previews=previews)
    result = train(assemble(recipe, resume=False, progress=Silence()))
    said = read_header(result).metadata
    if not asked:
        assert "ss_tag_frequency" not in said
        assert "modelspec.thumbnail" not in said
        return
    counts = json.loads(said["ss_tag_frequency"])["short"]
    assert counts
    assert all(count >= 1 for count in counts.values())
    kind, _, content = said["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(content)))
    drawn = Image.open(recipe.runs / "short/previews/step-000001/00.png")
    assert shown.size == drawn.size
