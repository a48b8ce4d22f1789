"""Recipes to begin with: they read, fit the memory, and know what the captions say."""

from pathlib import Path

import pytest

from trainer.core.device import Precision
from trainer.data.example import Example, Size
from trainer.recipe.parsing import read_settings
from trainer.recipe.proposing import Kind, Occasion, Pace, largest_batch, propose
from trainer.recipe.recipe import Recipe


def examples(count: int, caption: str = "a cat, number {}", side: int = 600, repeats: int = 1) -> list[Example]:
    return [
        Example(
            source=0,
            locator=f"{n}.png",
            name=f"{n}.png",
            key=f"{n:064d}",
            size=Size(side, side + 40),
            captions=(text,) if (text := caption.replace("{}", str(n))) else (),
            repeats=repeats,
        )
        for n in range(count)
    ]


def proposed(
    kind: Kind = Kind.character,
    pictures: list[Example] | None = None,
    *,
    name: str = "my-cat",
    images: str = "pictures/cat",
    pace: Pace | None = None,
    bundled: bool = False,
) -> tuple[str, Recipe]:
    text = propose(
        Occasion(
            name=name,
            kind=kind,
            images=images,
            examples=examples(20) if pictures is None else pictures,
            base="bundled" if bundled else "models/sd15",
            bundled=bundled,
            resolution=64 if bundled else 512,
            precision=Precision.bfloat16,
            pace=pace or Pace(batch=4),
        )
    )
    return text, read_settings(text, "proposal", (), Recipe)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("bundled", [True, False])
@pytest.mark.parametrize("count", [1, 20, 5000])
def test_every_proposal_is_a_recipe(kind: Kind, bundled: bool, count: int) -> None:
    _, recipe = proposed(kind, examples(count), bundled=bundled)
    assert recipe.data.resolution == (64 if bundled else 512)
    assert recipe.steps % recipe.previews.every == 0
    assert recipe.rate.warmup < recipe.steps
    assert recipe.previews.prompts


def test_more_pictures_ask_for_more_steps_within_reason() -> None:
    few = examples(20)
    steps = [proposed(Kind.domain, few * times)[1].steps for times in (1, 10, 100, 1000, 2000)]
    assert steps == sorted(steps)
    assert 100 < steps[0] < steps[2] < steps[3]
    assert steps[3] == steps[4]


def test_what_makes_it_fit_stands_in_the_recipe() -> None:
    tight = Pace(batch=1, checkpointing="half", quantize="nf4", resident=0.5, note="Planned: 3 GiB.")
    text, recipe = proposed(pace=tight)
    assert (recipe.batch, recipe.gradient_checkpointing) == (1, "half")
    assert (recipe.model.quantize, recipe.model.resident) == ("nf4", 0.5)
    assert "# Planned: 3 GiB." in text
    assert "quantize" not in proposed()[0]


def test_few_pictures_and_the_kind_bound_the_batch() -> None:
    assert largest_batch(Kind.character, examples(3), bundled=False) == 3
    assert largest_batch(Kind.character, examples(300), bundled=False) == 4
    assert largest_batch(Kind.domain, examples(300), bundled=False) == 16


def test_few_pictures_are_repeated_unless_the_folder_says_so() -> None:
    assert proposed(pictures=examples(20))[1].data.sources[0].repeats == 5
    assert proposed(pictures=examples(20, repeats=10))[1].data.sources[0].repeats == 1
    assert proposed(pictures=examples(400))[1].data.sources[0].repeats == 1


def test_the_trigger_is_what_the_captions_share_else_the_name() -> None:
    assert proposed(pictures=examples(9, "tom, standing {}"))[1].data.captions.trigger == "tom"
    assert proposed(pictures=examples(9, "cat {}"))[1].data.captions.trigger == "my-cat"
    assert proposed(Kind.style, examples(9, "cat {}"))[1].data.captions.trigger == "my-cat style"
    assert proposed(Kind.domain, examples(9, "tom, {}"))[1].data.captions.trigger == ""


def test_prompts_call_what_is_learned_and_one_does_not() -> None:
    _, recipe = proposed(pictures=examples(9, "cat {}"))
    assert recipe.previews.prompts == ("my-cat", "my-cat, cat 0", "my-cat, cat 4", "a red heart")


def test_what_a_person_should_know_stands_in_the_header() -> None:
    text, _ = proposed(pictures=examples(9, "", side=100))
    assert "9 pictures have no caption" in text
    assert "smaller than 512 pixels" in text


@pytest.mark.parametrize("odd", ["no", "1e3", "a, b: {c}", "it's #1", 'say "hi"', "ä/ö", "*x", "[y]", "C:\\cat"])
def test_odd_names_are_quoted(odd: str) -> None:
    _, recipe = proposed(pictures=examples(9, odd + " {}, cat"), images=odd)
    assert recipe.data.sources[0].path == Path(odd)
    assert any(odd in prompt for prompt in recipe.previews.prompts)
