"""trainer plan: what a run does with its data, told before it begins."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli.main import run

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
