"""The verbs together: cache, train, train again, sample."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli.main import run
from trainer.core.events import read_events


def test_the_whole_way(recipe_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(recipe_file())
    assert run(["cache", recipe]) == 0
    assert "5 pictures" in capsys.readouterr().out
    assert run(["cache", recipe]) == 0
    assert "0 pictures" in capsys.readouterr().out

    assert run(["train", recipe]) == 0
    folder = tmp_path / "runs" / "tried"
    expected = ("recipe.yaml", "environment.json", "events.jsonl", "data.json", "tried.safetensors")
    assert all((folder / name).is_file() for name in expected)
    assert (folder / "previews" / "step-000000" / "grid.png").is_file()
    assert (folder / "previews" / "step-000002" / "00.png").is_file()
    assert (folder / "checkpoints" / "step-000002" / "manifest.json").is_file()
    events = read_events(folder / "events.jsonl")
    assert [event["kind"] for event in events] == ["step", "step", "preview", "checkpoint", "done"]
    assert set(events[0]) == {"kind", "step", "loss", "rate", "seconds", "peak_bytes"}
    account = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert account["counts"]["accepted"] == 5
    assert sum(account["counts"][part] for part in ("accepted", "captions", "rejected", "ignored")) == account["found"]
    result = (folder / "tried.safetensors").read_bytes()
    for private in (str(tmp_path).encode(), b"red.png", b"orange ball"):
        assert private not in result

    capsys.readouterr()
    assert run(["train", recipe]) == 0
    assert "finished; nothing was changed" in capsys.readouterr().out
    assert (folder / "tried.safetensors").read_bytes() == result

    page = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").rename(folder / ".report.html.0123456789ab.tmp")  # as if it was killed while it wrote this
    assert run(["train", recipe]) == 0
    assert "nothing was changed" not in capsys.readouterr().out
    assert len((folder / "report.html").read_text(encoding="utf-8")) == len(page)
    assert not list(folder.glob(".*.tmp"))

    base = _weights(folder)
    for source in (recipe, str(folder), str(folder / "tried.safetensors")):
        out = tmp_path / "drawn"
        arguments = ["--prompt", "a", "--prompt", "b", "--steps", "2", "--size", "16", "--count", "2"]
        assert run(["sample", source, *arguments, "--base", base, "--out", str(out)]) == 0
        assert sorted(file.name for file in out.iterdir()) == ["00.png", "01.png", "02.png", "03.png", "grid.png"]


def _weights(folder: Path) -> str:
    from trainer.recipe.reading import read_recipe

    return read_recipe(folder / "recipe.yaml").model.weights
