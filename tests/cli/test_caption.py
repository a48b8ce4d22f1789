"""`trainer caption` on a folder and on a recipe: what it says, what it refuses, and its exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer.cli.main import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The undo file of a recipe lies where the command is run."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures with names that say something."""
    made = tmp_path / "gallery"
    made.mkdir()
    for name in ("red_ball.png", "green tree (2).png", "IMG_0001.png"):
        Image.new("RGB", (8, 8)).save(made / name)
    return made


def record_in(folder: Path) -> Path:
    return next(folder.glob("captions-undo-*.jsonl"))


def test_a_folder_is_captioned_and_taken_back(folder: Path, capsys: Captured) -> None:
    assert run(["caption", str(folder), "--captioner", "name"]) == 0
    said = capsys.readouterr()
    assert "Wrote 2 captions." in said.out
    assert "IMG_0001.png: the captioner has no words" in said.err
    assert (folder / "red_ball.txt").read_text() == "red ball\n"
    record = record_in(folder)
    assert f"trainer caption {folder} --undo {record}" in said.out
    assert run(["caption", str(folder), "--undo", str(record)]) == 0
    assert "2 files hold again what they held before." in capsys.readouterr().out
    assert not list(folder.glob("*.txt"))


def test_nothing_to_do_opens_nothing(folder: Path, capsys: Captured) -> None:
    assert run(["caption", str(folder), "--captioner", "fixed", "text=x"]) == 0
    capsys.readouterr()
    # a captioner whose weights are nowhere is not even asked for
    assert run(["caption", str(folder), "--captioner", "blip", "weights=owner/nowhere"]) == 0
    said = capsys.readouterr().out
    assert "3 pictures had one and keep it." in said
    assert "--overwrite" in said


def test_values_are_read_as_in_a_recipe(folder: Path) -> None:
    text = 'text="ink drawing, of a ball"'
    assert run(["caption", str(folder), text, "--captioner", "fixed", "--suffix", ".tags"]) == 0
    assert (folder / "red_ball.tags").read_text(encoding="utf-8") == "ink drawing, of a ball\n"


def test_a_moved_folder_is_taken_back_too(folder: Path, tmp_path: Path) -> None:
    assert run(["caption", str(folder), "--captioner", "fixed", "text=x"]) == 0
    moved = folder.rename(tmp_path / "moved")
    assert run(["caption", str(moved), "--undo", str(record_in(moved))]) == 0
    assert not list(moved.glob("*.txt"))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "wd_tagger: A WD tagger"),
        (["--captioner", "blib"], 2, "Did you mean `blip`?"),
        (["--captioner", "blip", "beems=3"], 2, "`beams`"),
        (["--captioner", "wd_tagger", "threshold=2"], 2, "captioner.threshold"),
        (["--captioner", "fixed"], 2, "captioner.text"),
        (["--captioner", "fixed", "text"], 2, "KEY=VALUE"),
        (["--captioner", "fixed", "text=x", "--overwrite", "--append"], 2, "exclude each other"),
        (["--captioner", "fixed", "text=x", "--suffix", "txt"], 2, "--suffix .txt"),
        (["--captioner", "fixed", "text=x", "--undo", "x.jsonl"], 2, "only takes back"),
        (["threshold=0.3", "--undo", "x.jsonl"], 2, "only takes back"),
        (["--undo", "absent.jsonl"], 2, "absent.jsonl"),
        (["--captioner", "blip", "weights=no/such/folder"], 2, "no/such/folder"),
        (["--captioner", "wd_tagger", "weights=owner/nowhere"], 2, "HF_HUB_OFFLINE"),
    ],
)
def test_mistakes(folder: Path, words: list[str], code: int, says: str, capsys: Captured) -> None:
    assert run(["caption", str(folder), *words]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "mend:" in said
    assert "Traceback" not in said
    assert not list(folder.glob("*.txt"))


def test_folders_that_hold_nothing(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["caption", str(tmp_path / "empty"), "--captioner", "name"]) == 3
    assert "no pictures" in capsys.readouterr().err
    assert run(["caption", str(tmp_path / "absent"), "--captioner", "name"]) == 2
    assert "mend:" in capsys.readouterr().err


def test_a_picture_that_cannot_be_used_is_named_with_code_3(folder: Path, capsys: Captured) -> None:
    (folder / "scan\x1b[31m.heic").write_bytes(b"x")
    assert run(["caption", str(folder), "--captioner", "fixed", "text=x"]) == 3
    said = capsys.readouterr()
    assert ".heic" in said.err
    assert "\x1b[31m" not in said.err
    assert "Wrote 3 captions." in said.out
    assert run(["caption", str(folder), "--undo", str(record_in(folder))]) == 0


def test_undo_names_what_it_leaves_alone(folder: Path, capsys: Captured) -> None:
    assert run(["caption", str(folder), "--captioner", "fixed", "text=x"]) == 0
    (folder / "red_ball.txt").write_text("by hand")
    capsys.readouterr()
    assert run(["caption", str(folder), "--undo", str(record_in(folder))]) == 3
    said = capsys.readouterr()
    assert "2 files hold again" in said.out
    assert "red_ball.txt: It was changed since" in said.err
    assert (folder / "red_ball.txt").read_text() == "by hand"


def test_a_recipe_is_captioned_where_it_says(
    recipe_file: Callable[..., Path], pictures: Path, tmp_path: Path, capsys: Captured
) -> None:
    recipe = recipe_file(captioner={"kind": "fixed", "text": "a ball"})
    (pictures / "red.txt").unlink()
    assert run(["caption", str(recipe)]) == 0
    assert (pictures / "red.txt").read_text() == "a ball\n"
    record = record_in(tmp_path)
    assert run(["caption", str(recipe), "--undo", str(record)]) == 0
    assert not (pictures / "red.txt").exists()
    record.unlink()
    assert run(["caption", str(recipe), "captioner.text=two balls", "--append"]) == 0
    assert (pictures / "green.txt").read_text() == "thing, green ball, tag 1, two balls\n"
    capsys.readouterr()
    # another kind takes the place of the recipe's block, and is changed by the recipe's own words
    assert run(["caption", str(recipe), "--captioner", "name", "captioner.keep_numbers=true", "--overwrite"]) == 0
    assert (pictures / "green.txt").read_text() == "green\n"


def test_a_recipe_that_names_no_captioner(recipe_file: Callable[..., Path], pictures: Path, capsys: Captured) -> None:
    recipe = recipe_file()
    assert run(["caption", str(recipe)]) == 2
    assert "`captioner` in the recipe" in capsys.readouterr().err
    (pictures / "red.txt").unlink()
    assert run(["caption", str(recipe), "--captioner", "fixed", "captioner.text=x"]) == 0


def test_an_undo_file_touches_only_folders_of_the_recipe(
    recipe_file: Callable[..., Path], folder: Path, capsys: Captured
) -> None:
    assert run(["caption", str(folder), "--captioner", "fixed", "text=x"]) == 0
    capsys.readouterr()
    assert run(["caption", str(recipe_file()), "--undo", str(record_in(folder))]) == 2
    assert "another folder" in capsys.readouterr().err
    assert len(list(folder.glob("*.txt"))) == 3


def test_sources_that_have_no_place_for_captions(
    recipe_file: Callable[..., Path], tmp_path: Path, capsys: Captured
) -> None:
    recipe = recipe_file(data={"sources": [{"kind": "webdataset", "path": str(tmp_path / "shard-{000..003}.tar")}]})
    assert run(["caption", str(recipe), "--captioner", "name"]) == 2
    said = capsys.readouterr().err
    assert "folders of pictures only" in said
    assert "trainer caption FOLDER" in said
