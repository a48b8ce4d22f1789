"""`trainer init`: a folder of pictures -> a recipe that is ready to run."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import trainer
from trainer.cli.init import bytes_of
from trainer.cli.main import run
from trainer.core.errors import RecipeError
from trainer.data.buckets import Bucket
from trainer.families.sd1 import Sd1
from trainer.planning.fitting import Fit
from trainer.planning.memory_plan import plan_memory
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with a folder of pictures, one without a caption and one broken."""
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "cat pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (80, 64), (number * 40, 90, 10)).save(pictures / f"{number}.png")
    for number in range(2):
        (pictures / f"{number}.txt").write_text(f"a cat, number {number}", encoding="utf-8")
    (pictures / "broken.png").write_bytes(b"")
    return pictures


@pytest.mark.parametrize("kind", ["character", "style", "domain"])
def test_a_recipe_is_written_and_the_next_command_told(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "my-cat", "--images", folder.name, "--kind", kind]) == 0
    recipe = read_recipe(Path("recipes/my-cat.yaml"))
    assert recipe.name == "my-cat"
    assert recipe.data.resolution == 64
    assert recipe.data.sources[0].path == Path(folder.name)
    assert Path("recipes/recipe.schema.json").is_file()
    told = capsys.readouterr().out
    assert "3 pictures, 2 of them with captions." in told
    assert "1 file cannot be used" in told
    assert "trainer train recipes/my-cat.yaml" in told


def test_a_recipe_is_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("recipes/my-cat.yaml")
    path.parent.mkdir()
    path.write_text("mine", encoding="utf-8")
    assert run(["init", "my-cat", "--images", folder.name]) == 2
    assert path.read_text(encoding="utf-8") == "mine"
    assert "There is a recipe of that name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["a/b", "--images", "cat pictures"], 2, "cannot be a folder's name"),
        (["x", "--images", "none"], 3, "none"),
        (["x", "--images", "cat pictures", "--memory", "much"], 2, "'much' is no size."),
        (["x", "--images", "cat pictures", "--base", "none.safetensors"], 2, "There is no such file."),
        (["x", "--images", "cat pictures", "--base", "model.ckpt"], 2, "model.ckpt"),
        (["x", "--images", "cat pictures", "--kind", "face"], 2, "face"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(
    arguments: list[str], code: int, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.is_dir()
    assert run(["init", *arguments]) == code
    assert told in capsys.readouterr().err
    assert not Path("recipes").exists()


def test_a_folder_of_broken_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    assert run(["init", "x", "--images", "bad"]) == 3
    assert "a.png" in capsys.readouterr().err


def test_a_base_on_the_hub_is_not_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Recipe] = []

    def fit(recipe: Recipe, bucket: object, kind: object, memory: int, most: int) -> Fit:
        planned.append(recipe)
        return Fit(recipe, plan_memory(recipe.model_copy(update={"model": Sd1()}), Bucket(64, 64), "cpu"), fits=True)

    monkeypatch.setattr("trainer.planning.fitting.fastest_fit", fit)
    assert run(["init", "x", "--images", folder.name, "--base", "owner/model", "--memory", "8GiB"]) == 0
    model: Any = planned[0].model
    assert model.open().config("unet")["block_out_channels"] == [320, 640, 1280, 1280]
    recipe = read_recipe(Path("recipes/x.yaml"))
    assert (recipe.model.weights, recipe.data.resolution) == ("owner/model", 512)


@pytest.mark.slow
def test_memory_decides_how_it_is_trained(folder: Path) -> None:
    asked = ["--images", folder.name, "--base", str(Path(trainer.__file__).parent / "families" / "bundled_base")]
    assert run(["init", "roomy", *asked, "--memory", "64GiB"]) == 0
    roomy = read_recipe(Path("recipes/roomy.yaml"))
    assert (roomy.batch, roomy.gradient_checkpointing, roomy.model.quantize) == (2, False, "none")
    assert "it takes" in Path("recipes/roomy.yaml").read_text(encoding="utf-8")
    assert run(["init", "tight", *asked, "--memory", "1MiB"]) == 0
    tight = read_recipe(Path("recipes/tight.yaml"))
    assert (tight.batch, tight.gradient_checkpointing, tight.model.quantize) == (1, True, "nf4")
    assert "it takes at the least" in Path("recipes/tight.yaml").read_text(encoding="utf-8")


def test_sizes_are_read_as_people_write_them() -> None:
    gibibyte = 1 << 30
    assert [bytes_of(text) for text in ("8GiB", "8 GB", "6.5g", "512MiB")] == [
        8 * gibibyte,
        8 * 1000**3,
        13 * gibibyte // 2,
        gibibyte // 2,
    ]
    for wrong in ("", "GiB", "-1G", "0G", "much"):
        with pytest.raises(RecipeError, match="is no size"):
            bytes_of(wrong)
