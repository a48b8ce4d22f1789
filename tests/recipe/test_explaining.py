"""`trainer explain`: every key with type, default, kinds and words; and the schema that it is drawn from."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.recipe.explaining import explain
from trainer.recipe.recipe import Recipe
from trainer.recipe.schema import Shape, json_schema


class Thin(Settings):
    """Two thin
    matrices.

    Source: a paper.
    """

    kind: Literal["thin"] = "thin"
    rank: PositiveInt = 16
    """The width
    between them."""


class Thick(Settings):
    """One thick matrix."""

    kind: Literal["thick"] = "thick"
    rank: PositiveInt = 4
    noise: float = Field(default=0.0, ge=0, lt=1)


AnyAdapter = Annotated[Thin | Thick, Field(discriminator="kind")]


class Order(Settings):
    """All of it."""

    name: str
    """Its name."""
    adapter: AnyAdapter = Field(default_factory=Thin)
    """What is trained."""
    trackers: tuple[AnyAdapter, ...] = ()
    size: int | tuple[int, int] = 64
    runs: Path | None = None


def test_every_key_is_explained() -> None:
    assert explain(Order) == [
        "name: text; required",
        "    Its name.",
        "adapter: a block with a `kind` (thin, thick); default kind thin",
        "    What is trained.",
        "  adapter of kind thin:",
        "      Two thin matrices.",
        "      Source: a paper.",
        "    adapter.rank: a whole number above 0; default 16",
        "        The width between them.",
        "  adapter of kind thick:",
        "      One thick matrix.",
        "    adapter.rank: a whole number above 0; default 4",
        "    adapter.noise: a number of at least 0 and below 1; default 0.0",
        "trackers: a list, each a block with a `kind` (thin, thick); default []",
        "  trackers.N of kind thin:",
        "      Two thin matrices.",
        "      Source: a paper.",
        "    trackers.N.rank: a whole number above 0; default 16",
        "        The width between them.",
        "  trackers.N of kind thick:",
        "      One thick matrix.",
        "    trackers.N.rank: a whole number above 0; default 4",
        "    trackers.N.noise: a number of at least 0 and below 1; default 0.0",
        "size: a whole number or a list of 2: a whole number, a whole number; default 64",
        "runs: a path or null; default null",
    ]


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("name", ["name: text; required"]),
        ("adapter.rank", ["adapter.thin.rank: a whole", "adapter.thick.rank: a whole"]),
        ("adapter.noise", ["adapter.thick.noise: a number"]),
        ("adapter.thick", ["adapter.thick of kind thick:"]),
        ("adapter.thick.rank", ["adapter.thick.rank: a whole"]),
        ("trackers.noise", ["trackers.N.thick.noise: a number"]),
        ("trackers.3.noise", ["trackers.N.thick.noise: a number"]),
        ("trackers.N.thick.noise", ["trackers.N.thick.noise: a number"]),
    ],
)
def test_one_key_is_explained_however_it_is_named(key: str, first: list[str]) -> None:
    heads = [line for line in explain(Order, key) if not line.startswith(" ")]
    assert len(heads) == len(first)
    assert all(head.startswith(start) for head, start in zip(heads, first, strict=True))


@pytest.mark.parametrize(
    ("key", "guess"),
    [("nmae", "`name`"), ("adapter.rnk", "`adapter.rank`"), ("trackers.noize", "`trackers.noise`")],
)
def test_an_unknown_key_leads_to_the_nearest(key: str, guess: str) -> None:
    with pytest.raises(RecipeError) as raised:
        explain(Order, key)
    assert raised.value.what == f"There is no key `{key}`."
    assert raised.value.mend is not None
    assert raised.value.mend.startswith(f"Did you mean {guess}?")


def test_the_schema_is_tidy_and_strict() -> None:
    schema = json_schema(Order)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["name"] == {"type": "string", "description": "Its name."}
    thin = schema["$defs"]["Thin"]
    assert thin["description"] == "Two thin matrices.\n\nSource: a paper."
    assert thin["additionalProperties"] is False
    assert thin["required"] == ["kind"]
    assert thin["properties"]["rank"]["description"] == "The width between them."
    assert schema["properties"]["adapter"]["default"] == {"kind": "thin", "rank": 16}
    assert list(Shape.of(Order).keys["adapter"].kinds) == ["thin", "thick"]


def test_every_key_of_the_recipe_has_words() -> None:
    """A person reads them; a key without a docstring is not finished."""
    schema = json_schema(Recipe)
    blocks = {"Recipe": schema, **{name: node for name, node in schema["$defs"].items() if "properties" in node}}
    silent = [
        f"{name}.{key}"
        for name, node in blocks.items()
        for key, shape in Shape(schema, node).keys.items()
        if key != "kind" and not shape.description
    ]
    assert not silent
