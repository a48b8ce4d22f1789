"""`trainer doctor` on a folder and on a recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.cli.main import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        squares = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((512, 512), Image.Resampling.NEAREST).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"number {number}")
    return pictures


def a_recipe(folder: Path, tmp_path: Path, weights: str = "bundled") -> Path:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nmodel: {{kind: sd1, weights: {weights}}}\n"
        f"data: {{sources: [{{kind: folder, path: {folder}}}], resolution: 64, captions: {{trigger: zwx}}, "
        f"cache: {{folder: {tmp_path / 'cache'}}}}}\nbatch: 2\n"
    )
    return recipe


def test_a_good_folder_is_accepted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "512 x 512" in shown
    assert "note: No trigger word is set." in shown
    assert "warning" not in shown


def test_a_folder_that_would_be_refused_ends_with_3_and_both_reports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad\x1b[31m.png").write_text("I am a text")
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    assert run(["doctor", str(folder), "--json", str(report), "--html", str(page)]) == 3
    shown = capsys.readouterr().out
    assert "error: Cannot be used: This is no picture" in shown
    assert "\x1b[31m" not in shown
    told = json.loads(report.read_text())
    assert told["findings"][0]["level"] == "error"
    counts = {"accepted": 3, "captions": 3, "masks": 0, "rejected": 1, "ignored": 0, "warnings": 0}
    assert told["account"]["counts"] == counts
    assert [bucket["bucket"] for bucket in told["buckets"]] == [[512, 512]]
    assert told["sources"][0]["share"] == 1
    assert told["vocabulary"]["captions"] == 3
    assert {"copies", "overflow"} <= set(told)
    assert "Training would be refused" in page.read_text(encoding="utf-8")
    assert str(report) in shown
    assert str(page) in shown


def test_near_copies_are_looked_for_unless_it_shall_be_quick(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(folder / "0.png") as image:
        image.resize((480, 480)).save(folder / "again.jpg", quality=60)
    (folder / "again.txt").write_text("number 0, again")
    assert run(["doctor", str(folder)]) == 0
    assert f"{folder}/0.png = {folder}/again.jpg" in capsys.readouterr().out
    assert run(["doctor", str(folder), "--quick"]) == 0
    assert "again.jpg =" not in capsys.readouterr().out


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
    recipe, report = a_recipe(folder, tmp_path), tmp_path / "report.json"
    assert run(["doctor", str(recipe), "batch=4", "--json", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "64 x 64" in shown
    assert "Buckets of 64 pixels, batches of 4" in shown
    assert "are cut off" in shown
    assert "3 captions lack the trigger" in shown
    (overflow,) = json.loads(report.read_text())["overflow"]
    assert overflow["picture"] == f"{folder}/0.png"
    assert overflow["lost"].split() == ["word"] * len(overflow["lost"].split())
    assert overflow["over"] > 0


def test_without_the_model_everything_but_tokens_is_examined(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "0.txt").write_text("word " * 200)
    assert run(["doctor", str(a_recipe(folder, tmp_path, str(tmp_path / "nowhere")))]) == 0
    shown = capsys.readouterr().out
    assert "tokens are not counted" in shown
    assert "are cut off" not in shown
