"""Each mistake of a user: one message of what, where and how to mend it, the right exit code, and nothing begun."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli.main import run

MakeRecipe = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def refused(arguments: list[str], code: int, captured: Captured) -> str:
    """The one message of a command that must end with `code`."""
    captured.readouterr()
    assert run(arguments) == code
    said = captured.readouterr().err
    assert "Traceback" not in said
    assert "mend:" in said
    return said


def begun(tmp_path: Path) -> bool:
    return (tmp_path / "runs" / "tried" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("data.sources.0.path=no/such/folder", 3, "no/such/folder"),
        ("stepps=3", 2, "`steps`"),
        ("steps=many", 2, "steps"),
        ("steps=-1", 2, "steps"),
        ("adapter.layers=[atention]", 2, "atention"),
        ("name=../outside", 2, "no path"),
        ("name=a/b", 2, "no path"),
        ("model.weights=models/absent.safetensors", 2, "no such file"),
        ("model.weights=models/absent.ckpt", 2, "never open"),
        ("optimizer.kind=adam_8bit", 2, "adamw_8bit"),
        ("batch", 2, "KEY=VALUE"),
    ],
)
def test_mistakes_in_a_recipe(
    recipe_file: MakeRecipe, tmp_path: Path, override: str, code: int, says: str, capsys: Captured
) -> None:
    assert says in refused(["train", str(recipe_file()), override], code, capsys)
    assert not begun(tmp_path)


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("name: x\nstepps: 3\nbatch: two\ndata:\n  sources: []\n  resolutoin: 64\n", encoding="utf-8")
    said = refused(["train", str(path)], 2, capsys)
    for part in ("wrong.yaml:2", "wrong.yaml:3", "wrong.yaml:6", "`resolution`", "`steps`"):
        assert part in said, part


def test_a_folder_without_pictures(recipe_file: MakeRecipe, pictures: Path, tmp_path: Path, capsys: Captured) -> None:
    recipe = recipe_file()
    for file in pictures.glob("*.png"):
        file.unlink()
    assert "no pictures" in refused(["train", str(recipe)], 3, capsys).lower()
    assert not begun(tmp_path)


@pytest.mark.parametrize("verb", ["train", "cache"])
def test_broken_files_are_named_and_the_account_is_whole(
    recipe_file: MakeRecipe, pictures: Path, tmp_path: Path, verb: str, capsys: Captured
) -> None:
    recipe = recipe_file()
    whole = (pictures / "red.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "renamed.png").write_text("I am text.", encoding="utf-8")
    (pictures / "red.txt").write_bytes("Größe".encode("latin-1"))
    said = refused([verb, str(recipe)], 3, capsys)
    for name in ("cut.png", "empty.png", "renamed.png", "red.txt"):
        assert name in said, name
    assert "data.on_reject=skip" in said
    assert not begun(tmp_path)
    assert run([verb, str(recipe), "data.on_reject=skip"]) == 0


def test_weights_of_another_family_and_pickles(recipe_file: MakeRecipe, tmp_path: Path, capsys: Captured) -> None:
    import json
    import shutil

    import yaml

    recipe = recipe_file()
    weights = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]["weights"]
    other = Path(shutil.copytree(weights, tmp_path / "other"))
    index = other / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}), encoding="utf-8")
    assert "Stable Diffusion XL" in refused(["train", str(recipe), f"model.weights={other}"], 2, capsys)
    pickled = Path(shutil.copytree(weights, tmp_path / "pickled"))
    unet = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".bin"))
    assert "can run code" in refused(["train", str(recipe), f"model.weights={pickled}"], 2, capsys)
    assert not begun(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="rights are otherwise there")
def test_a_folder_that_cannot_be_written(recipe_file: MakeRecipe, tmp_path: Path, capsys: Captured) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be", encoding="utf-8")
    said = refused(["train", str(recipe_file()), f"runs={blocked}"], 2, capsys)
    assert "cannot be written" in said
    assert str(blocked) in said


def test_one_owner_of_a_run_folder(recipe_file: MakeRecipe, tmp_path: Path, capsys: Captured) -> None:
    from trainer.core.run_folder import RunFolder

    folder = RunFolder(tmp_path / "runs" / "tried")
    folder.create()
    with folder.owned():
        assert "Another process" in refused(["train", str(recipe_file())], 2, capsys)


def test_drawing_what_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    for source in ("absent.safetensors", "absent.yaml", "absent-run"):
        refused(["sample", str(tmp_path / source), "--prompt", "x"], 2, capsys)
    assert "DDIM" in refused(["sample", str(tmp_path), "--prompt", "x", "--sampler", "dimm"], 2, capsys)
