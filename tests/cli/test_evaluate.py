"""`trainer evaluate`: a table, sentences and a file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli.main import run


@pytest.fixture
def folder(recipe_file: Callable[..., Path]) -> Path:
    path = recipe_file(
        data={
            "sources": [{"kind": "folder", "path": str(recipe_file().parent / "pictures")}],
            "resolution": 16,
            "cache": {"folder": str(recipe_file().parent / "cache")},
        },
        held_out={"share": 0.4},
        checkpoints={"every": 1, "keep": 1},
    )
    assert run(["train", str(path)]) == 0
    return path.parent / "runs" / "tried"


def test_a_run_is_judged_and_its_best_put_in_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert sum(example["held_out"] for example in data["accepted"]) == 2
    assert run(["evaluate", str(folder), "--seeds", "1", "--strengths", "", "--best"]) == 0
    told, shown = capsys.readouterr()
    assert "asking what words fit: 7/7" in shown  # minutes, where there are many pictures
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["runs"][0]
    best = content["recommendation"]
    assert [one["step"] for one in content["candidates"]] == [1, 2]
    assert content["held_out_pictures"] == 2
    assert f"Use step {best['step']} at strength 1" in told
    assert "was not measured" in told
    assert best["copied_to"] == "tried.safetensors"
    assert (folder / "tried-last.safetensors").exists() == (best["step"] == 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strengths", "much"], "no numbers"),
        (["--strengths", "0.5,9"], "up to 2"),
        (["--features", "nowhere"], "CLIP or DINOv2"),
        (["--best", "--", "other"], "one run"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run_is_no_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(tmp_path)]) == 2
    assert "recipe.yaml" in capsys.readouterr().err
