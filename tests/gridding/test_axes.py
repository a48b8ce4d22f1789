"""What varies along which side of a sheet."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.core.errors import RecipeError
from trainer.gridding.axes import BASE_LABEL, Cell, Known, axis_of, sheets_of, with_base
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Ddim, EulerA

KNOWN = Known(prompts=["a cat, red", "a dog"], steps=[10, 20, 30])
USUAL = Cell(prompt=Prompt(text="usual"), settings=DrawSettings(), sampler=Ddim(), strength=1.0)


def labels(word: str) -> list[str]:
    return [value.label for value in axis_of(word, KNOWN).values]


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("prompt", ["a cat, red", "a dog"]),
        ("seed=3,5..7", ["seed 3", "seed 5", "seed 6", "seed 7"]),
        ("step", ["step 10", "step 20", "step 30"]),
        ("step=10,last", ["step 10", "step 30"]),
        ("step=15..40", ["step 20", "step 30"]),
        ("strength=0.6, 1.0", ["strength 0.6", "strength 1"]),
        ("guidance=3,7.5", ["guidance 3", "guidance 7.5"]),
        ("sampler=Euler a,dpmpp_2m", ["Euler a", "DPM++ 2M"]),
    ],
)
def test_axes_are_written_in_one_word(word: str, means: list[str]) -> None:
    assert labels(word) == means


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("colour", "no axis 'colour'"),
        ("seed=", "no values"),
        ("seed=x", "no whole number"),
        ("seed=0..5000", "5,001 values"),
        ("seed=1,1", "twice"),
        ("step=11", "Nothing was kept of step 11"),
        ("guidance=-1", "not between"),
        ("strength=nan", "no strength"),
        ("strength=much", "no strength"),
        ("sampler=Eular", "no sampler"),
        ("adapter=nowhere.safetensors", "no such adapter"),
        ("prompt=a cat,a dog", "may hold commas"),
    ],
)
def test_mistakes_are_named(word: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        axis_of(word, KNOWN)


@pytest.mark.parametrize(
    ("word", "what"), [("step=last", "Nothing was kept"), ("step", "nothing to put"), ("prompt", "nothing")]
)
def test_there_must_be_something_to_put_there(word: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        axis_of(word, Known(prompts=(), steps=()))


def test_every_cell_is_what_its_labels_say(tmp_path: Path) -> None:
    axes = [axis_of(word, KNOWN) for word in ("step=10,30", "prompt", "sampler=DDIM,Euler a")]
    sheets = sheets_of(with_base(axes), USUAL)
    assert [sheet.label for sheet in sheets] == ["sampler: DDIM", "sampler: Euler a"]
    assert sheets[1].columns == (BASE_LABEL, "step 10", "step 30")
    assert sheets[1].rows == ("a cat, red", "a dog")
    base, _, last = sheets[1].cells[1]
    assert (last.prompt.text, last.step, last.sampler, last.strength) == ("a dog", 30, EulerA(), 1.0)
    assert (base.prompt.text, base.step, base.strength) == ("a dog", None, 0.0)


def test_the_base_is_one_picture_whatever_is_said_of_adapters() -> None:
    axes = [axis_of(word, KNOWN) for word in ("strength=0.5,1", "step=10,20")]
    cells = sheets_of(with_base(axes), USUAL)[0].cells
    assert cells[0][0] == cells[1][0]
    assert cells[0][0].step is None
    assert [cell.strength for cell in cells[1]] == [0.0, 0.5, 1.0]
    turned = sheets_of(with_base(axes[::-1]), USUAL)[0].cells
    assert {cell.strength for row in turned for cell in row[:1]} == {0.0}


def test_the_base_has_a_sheet_of_its_own_where_no_axis_is_about_the_adapter() -> None:
    axes = [axis_of(word, KNOWN) for word in ("prompt", "seed=0,1")]
    sheets = sheets_of(with_base(axes), USUAL)
    assert [sheet.label for sheet in sheets] == ["with adapter", BASE_LABEL]
    assert {cell.strength for row in sheets[1].cells for cell in row} == {0.0}


@pytest.mark.parametrize("words", [["prompt"], ["prompt", "prompt"], ["prompt", "seed", "step", "guidance"]])
def test_a_grid_has_two_or_three_axes(words: list[str]) -> None:
    with pytest.raises(RecipeError, match="two or three different axes"):
        sheets_of([axis_of(word, KNOWN) for word in words], USUAL)


def test_steps_of_the_run_and_other_files_are_no_grid(tmp_path: Path) -> None:
    """Each picture of the file would stand there once for every step, and say that steps change nothing."""
    file = tmp_path / "other.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, file)
    with pytest.raises(RecipeError, match="an adapter file has its own"):
        sheets_of([axis_of(word, KNOWN) for word in ("step", f"adapter={file}")], USUAL)
