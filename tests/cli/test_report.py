"""The verb report, and the page that train leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli.main import run
from trainer.core.events import read_events


def test_train_leaves_a_page_and_the_verb_writes_it_anew(
    recipe_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(recipe_file())]) == 0
    page = tmp_path / "runs" / "tried" / "report.html"
    assert f"Report: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "This run is finished." in text
    assert "also tells what the doctor finds" in text

    out = tmp_path / "elsewhere" / "page.html"
    assert run(["report", str(page.parent), "--out", str(out)]) == 0
    assert "page.html (0." in capsys.readouterr().out
    whole = out.read_text(encoding="utf-8")
    assert "also tells what the doctor finds" not in whole
    assert "finds in the data as they are now" in whole
    assert str(tmp_path) not in whole
    assert run(["report", str(page.parent)]) == 0
    assert page.read_text(encoding="utf-8") == whole


def test_a_page_that_cannot_be_written_does_not_fail_the_run(
    recipe_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "tried"
    (folder / "report.html" / "in the way").mkdir(parents=True)
    assert run(["train", str(recipe_file())]) == 0
    said = capsys.readouterr()
    assert "The report could not be written" in said.err
    assert "Done. The result" in said.out
    assert read_events(folder / "events.jsonl")[-1]["kind"] == "done"
    assert run(["report", str(folder)]) == 2
    assert "take the place of a folder" in capsys.readouterr().err


def test_a_folder_without_a_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path)]) == 2
    assert "There is no run in this folder" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "nowhere")]) == 2
