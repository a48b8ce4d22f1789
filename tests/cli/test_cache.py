"""`trainer cache`: fill, look through, verify, prune; and what it refuses."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli.main import run

MakeRecipe = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    """A person at a terminal who types this."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def filled(recipe_file: MakeRecipe, tmp_path: Path, capsys: Captured) -> Path:
    """A recipe whose cache is filled, with entries of resolution 32 that it does not need beside them."""
    recipe = recipe_file()
    assert run(["cache", str(recipe), "data.resolution=32"]) == 0
    assert run(["cache", str(recipe)]) == 0
    capsys.readouterr()
    return recipe


def encoded(recipe: Path, capsys: Captured, *overrides: str) -> list[int]:
    """How many pictures and captions a filling had to encode."""
    capsys.readouterr()
    assert run(["cache", str(recipe), *overrides]) == 0
    words = capsys.readouterr().out.split()
    return [int(words[place - 2]) for place, word in enumerate(words) if word == "encoded,"]


def shards(tmp_path: Path) -> dict[Path, bytes]:
    """All files of encoded pictures and words."""
    return {
        file: file.read_bytes() for file in (tmp_path / "cache").glob("*/shard-*.arrow") if "verdicts" not in str(file)
    }


def cells(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def test_what_the_cache_holds(filled: Path, tmp_path: Path, capsys: Captured) -> None:
    before = shards(tmp_path)
    assert run(["cache", str(filled), "--stat"]) == 0
    *folders, total = cells(capsys.readouterr().out)
    names = [row[0] for row in folders]
    assert any(name.startswith("sd1-vae-") for name in names)
    assert any(name.startswith("sd1-text-") for name in names)
    assert total[0] == "all"
    assert int(total[1]) == sum(int(row[1]) for row in folders) > 0
    assert shards(tmp_path) == before


def test_damage_is_removed_and_made_again(filled: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["cache", str(filled), "--verify"]) == 0
    assert "Every entry is sound." in capsys.readouterr().out
    cut = next(iter(shards(tmp_path)))
    cut.write_bytes(cut.read_bytes()[:-40])
    assert run(["cache", str(filled), "--verify"]) == 0
    said = capsys.readouterr()
    assert "make it again" in said.out
    assert "1" in [row[3] for row in cells(said.out)]
    assert cut.name in said.err
    assert sum(encoded(filled, capsys)) + sum(encoded(filled, capsys, "data.resolution=32")) > 0
    assert run(["cache", str(filled), "--verify"]) == 0
    assert "Every entry is sound." in capsys.readouterr().out


def test_what_the_recipe_does_not_need_goes(filled: Path, capsys: Captured) -> None:
    assert run(["cache", str(filled), "--prune", "--yes"]) == 0
    assert "Removed: " in capsys.readouterr().out
    assert encoded(filled, capsys) == [0, 0]
    pictures, captions = encoded(filled, capsys, "data.resolution=32")
    assert pictures > 0
    assert captions == 0  # the words are the same


def test_another_recipe_s_entries_are_kept(filled: Path, tmp_path: Path, capsys: Captured) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(filled.read_text(encoding="utf-8").replace("resolution: 16", "resolution: 32"), encoding="utf-8")
    before = shards(tmp_path)
    assert run(["cache", str(filled), "--prune", "--also", str(other), "--yes"]) == 0
    assert "all of it is needed" in capsys.readouterr().out
    assert shards(tmp_path) == before


@pytest.mark.parametrize(("typed", "goes"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_person_is_asked(
    filled: Path, tmp_path: Path, typed: str, goes: bool, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shards(tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert run(["cache", str(filled), "--prune"]) == 0
    said = capsys.readouterr().out
    assert "Other recipes that use this cache" in said
    assert ("Removed: " in said) is goes
    assert (shards(tmp_path) != before) is goes


def test_nobody_to_ask_is_refused(
    filled: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shards(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run(["cache", str(filled), "--prune"]) == 2
    said = capsys.readouterr().err
    assert "no terminal" in said
    assert "--yes" in said
    assert shards(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--verify", "--prune"], "one at a time"),
        (["--stat", "--verify"], "one at a time"),
        (["--yes"], "belong to --prune"),
        (["--stat", "--also", "other.yaml"], "belong to --prune"),
        (["--prune", "--also", "absent.yaml"], "absent.yaml"),
    ],
)
def test_mistakes_on_the_command_line(
    recipe_file: MakeRecipe, arguments: list[str], says: str, capsys: Captured
) -> None:
    assert run(["cache", str(recipe_file()), *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_a_recipe_with_another_cache_is_not_asked(recipe_file: MakeRecipe, tmp_path: Path, capsys: Captured) -> None:
    recipe = recipe_file()
    other = tmp_path / "other.yaml"
    text = recipe.read_text(encoding="utf-8")
    other.write_text(text.replace(str(tmp_path / "cache"), str(tmp_path / "else")), encoding="utf-8")
    assert run(["cache", str(recipe), "--prune", "--also", str(other), "--yes"]) == 2
    assert "another folder" in capsys.readouterr().err


def test_an_empty_cache(recipe_file: MakeRecipe, tmp_path: Path, capsys: Captured) -> None:
    recipe = recipe_file()
    for deed in ("--stat", "--verify"):
        assert run(["cache", str(recipe), deed]) == 0
    assert "Every entry is sound." in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
