"""trainer plan: what a run does with its data, told before it begins."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from trainer.adapters.lora import Lora
from trainer.cli import train
from trainer.cli.main import run
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.recipe.recipe import Recipe

RecipeFile = Callable[..., Path]


def test_the_numbers_are_those_of_the_data(
    recipe_file: RecipeFile, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(batch=2, steps=9)
    assert run(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    assert "16 x 16" in out
    assert "5, shown 5 times in an epoch of 3 batches" in out
    assert "9 batches, 3.0 epochs" in out
    assert "5 latents" in out
    assert "5 texts" in out
    assert not (tmp_path / "runs").exists()


def test_small_buckets_and_what_becomes_of_them_are_shown(
    recipe_file: RecipeFile, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (64, 16), (number, 0, 0)).save(pictures / f"long{number}.png")
        (pictures / f"long{number}.txt").write_text("long")
    path = recipe_file(batch=5)
    sizes = ["data.resolution=32", "data.buckets.step=16"]
    assert run(["plan", str(path), *sizes]) == 0
    assert "small batch" in capsys.readouterr().out
    assert run(["plan", str(path), *sizes, "data.buckets.small=move"]) == 0
    out = capsys.readouterr().out
    assert "moved in" in out
    assert "small batch" not in out


def test_class_pictures_that_are_missing_are_counted(
    recipe_file: RecipeFile, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [
        {"kind": "folder", "path": str(pictures)},
        {"kind": "folder", "path": str(tmp_path / "class"), "generate": {"count": 7, "prompts": ["a ball"]}},
    ]
    data = {"sources": sources, "resolution": 16, "cache": {"folder": str(tmp_path / "cache")}}
    assert run(["plan", str(recipe_file(data=data))]) == 0
    assert "draws 7 class pictures" in capsys.readouterr().out


def test_memory_and_time_are_told(recipe_file: RecipeFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, told = recipe_file(), tmp_path / "plan.json"
    assert run(["plan", str(path), "--device", "cuda", "--memory", "8GiB", "--json", str(told)]) == 0
    out = capsys.readouterr().out
    assert "fits into 8.00 GiB" in out
    for part in ("weights", "trained", "activations", "libraries and context"):
        assert part in out
    content = json.loads(told.read_text(encoding="utf-8"))
    assert content["fits"] is True
    assert content["peak"] == content["fixed"] + max(sum(parts.values()) for parts in content["moments"].values())
    assert content["steps"] == 2


def test_what_does_not_fit_ends_with_four_and_says_what_would(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.planning.switches._RESIDENT", ())
    monkeypatch.setattr("trainer.planning.switches._FEWER_BITS", {"none": ()})
    path, told = recipe_file(gradient_checkpointing=True, previews={"prompts": []}), tmp_path / "plan.json"
    assert run(["plan", str(path), "--device", "cuda", "--memory", "1MiB", "--json", str(told)]) == 4
    captured = capsys.readouterr()
    assert "does NOT fit" in captured.out
    assert "trying:    batch=1 accumulate=2" in captured.out
    assert "Nothing that we know makes it fit" in captured.err
    assert json.loads(told.read_text(encoding="utf-8"))["fits"] is False


def test_a_run_before_tells_the_time(recipe_file: RecipeFile, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe_file(steps=6, previews={"prompts": []})
    assert run(["plan", str(path)]) == 0
    assert "as measured just now" in capsys.readouterr().out
    assert run(["train", str(path)]) == 0
    assert run(["plan", str(path), "steps=1000"]) == 0
    assert "median of 3 steps of" in capsys.readouterr().out
    assert run(["plan", str(path), "batch=1"]) == 0  # other steps
    assert "as measured just now" in capsys.readouterr().out


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step finds no memory."""

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("trainer.loop.train.one_pass", run_out)


@pytest.mark.usefixtures("full")
def test_a_run_whose_memory_runs_out_is_told_what_would_fit(
    recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    networks: list[weakref.ref[Any]] = []
    there: list[bool] = []
    attach, find = Lora.attach, train._what_fits  # pyright: ignore[reportPrivateUsage]

    def attached(lora: Lora, model: DiffusionModel, seeds: Seeds) -> Any:
        networks.append(weakref.ref(model.denoiser))
        return attach(lora, model, seeds)

    def look(recipe: Recipe) -> str | None:
        there.extend(network() is not None for network in networks)
        return find(recipe)

    monkeypatch.setattr(Lora, "attach", attached)
    monkeypatch.setattr(train, "_what_fits", look)
    assert run(["train", str(recipe_file(gradient_checkpointing=False, previews={"prompts": []}))]) == 4
    told = capsys.readouterr().err
    assert "not enough memory for the largest batch" in told
    assert "Add gradient_checkpointing=" in told
    assert there == [False]  # the run's model was gone before the search began


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("hindrance", ["memory", "time"])
def test_where_nothing_can_be_looked_for_the_error_comes_without_advice(
    recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hindrance: str
) -> None:
    def look(_: Recipe) -> str | None:
        if hindrance == "memory":
            raise RuntimeError("can't start new thread")
        Event().wait(20)  # as Thread.start does, where the new thread died of memory before it was there
        return "batch=1"

    monkeypatch.setattr(train, "_what_fits", look)
    monkeypatch.setattr(train, "_SEARCH", 0.1)
    assert run(["train", str(recipe_file(previews={"prompts": []}))]) == 4
    told = capsys.readouterr().err
    assert "not enough memory for the largest batch" in told
    assert "`trainer plan RECIPE` tells" in told
