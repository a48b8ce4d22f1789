"""Recipe files that cannot be opened as such."""

import os
from pathlib import Path

import pytest

from trainer.core.errors import RecipeError
from trainer.recipe.reading import read_recipe, text_of


def refusal(path: Path) -> RecipeError:
    with pytest.raises(RecipeError) as raised:
        read_recipe(path)
    return raised.value


def test_a_missing_file_and_a_folder_are_told_so(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml").what == "There is no such recipe."
    assert refusal(tmp_path).what == "This is a folder, not a recipe."


def test_a_file_of_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: x\n# café\n".encode("latin-1"))
    error = refusal(path)
    assert error.what == "This file is no UTF-8 text."
    assert error.where == f"{path}:2"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert text_of(path) == "name: x\n"


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    assert refusal(path).what == "This file is larger than 256 KiB: no recipe is."


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes on this system")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert refusal(tmp_path / "pipe.yaml").what == "There is no such recipe."


def test_a_mistake_names_the_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: a/b\nstpes: 3\n", encoding="utf-8")
    text = str(refusal(path))
    assert f"{path}:1 (name)" in text
    assert f"{path}:2 (stpes)" in text
    assert "Did you mean `steps`?" in text
    assert "The key `data` is missing." in text


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("previews: {prompts: [a cat, 'hf_TOKEN']}", "previews.prompts.1"),
        ("model: {kind: sd1, weights: 'https://me:hf_TOKEN@host/model'}", "model.weights"),
        ("trackers: [{kind: wandb, project: 'ghp_TOKEN'}]", "trackers.0.project"),
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(tmp_path: Path, line: str, key: str) -> None:
    path = tmp_path / "open.yaml"
    token = "aB3" * 12
    start = "name: x\ndata: {sources: [{kind: folder, path: pictures}]}\n"
    path.write_text(start + line.replace("TOKEN", token) + "\n", encoding="utf-8")
    error = refusal(path)
    assert key in error.what
    assert token not in str(error)
