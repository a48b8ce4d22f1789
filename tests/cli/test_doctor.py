"""`trainer doctor` on a folder and on a recipe."""

import json
from pathlib import Path

import pytest
from PIL import Image

from trainer.cli.main import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (512, 512), (number, 0, 0)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"number {number}")
    return pictures


def test_a_good_folder_is_accepted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "512 x 512" in shown
    assert "note: No trigger word is set." in shown


def test_a_folder_that_would_be_refused_ends_with_3_and_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad\x1b[31m.png").write_text("I am a text")
    report = tmp_path / "report.json"
    assert run(["doctor", str(folder), "--json", str(report)]) == 3
    shown = capsys.readouterr().out
    assert "error: Cannot be used: This is no picture" in shown
    assert "\x1b[31m" not in shown
    told = json.loads(report.read_text())
    assert told["findings"][0]["level"] == "error"
    assert told["account"]["counts"] == {"accepted": 3, "captions": 3, "rejected": 1, "ignored": 0, "warnings": 0}


@pytest.mark.parametrize(
    ("target", "code"), [("no-such-folder", 2), ("empty", 3)], ids=["neither folder nor recipe", "nothing in it"]
)
def test_nothing_to_examine(tmp_path: Path, target: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["doctor", str(tmp_path / target)]) == code
    assert "mend:" in capsys.readouterr().err


def test_changes_are_for_recipes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(folder), "data.resolution=64"]) == 2
    assert "recipe" in capsys.readouterr().err


def test_a_recipe_is_examined_with_its_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "0.txt").write_text("word " * 200)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nmodel: {{kind: sd1, weights: bundled}}\n"
        f"data: {{sources: [{{kind: folder, path: {folder}}}], resolution: 64, captions: {{trigger: zwx}}}}\nbatch: 2\n"
    )
    assert run(["doctor", str(recipe), "batch=4"]) == 0
    shown = capsys.readouterr().out
    assert "64 x 64" in shown
    assert "Buckets of 64 pixels, batches of 4" in shown
    assert "are cut off" in shown
    assert "3 captions lack the trigger" in shown
