"""`trainer explain`: keys in words, and the schema file."""

import json
from pathlib import Path

import pytest

from trainer.cli.main import run


def test_a_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "adapter.rank"]) == 0
    assert "a whole number above 0; default 16" in capsys.readouterr().out


def test_all_keys_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "name: text; required" in lines
    assert any(line.strip().startswith("data.sources.N.path: a path; required") for line in lines)


def test_an_unknown_key_is_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "adaptor"]) == 2
    assert "Did you mean `adapter`?" in capsys.readouterr().err


def test_the_schema_is_written(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert run(["explain", "--schema", str(path)]) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["title"] == "Recipe"
