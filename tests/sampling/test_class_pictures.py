"""The base model draws the class pictures that a folder lacks, the same ones whenever it is asked."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainer.core.device import Precision
from trainer.data.decoding import ImageLimits
from trainer.data.scanning import scan
from trainer.data.sources.folder import Generated, ImageFolder
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.sampling.class_pictures import draw_missing, missing_pictures


@pytest.fixture
def model(small_model: Path) -> DiffusionModel:
    return Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))


def folder_of(path: Path, count: int = 10) -> ImageFolder:
    wanted = Generated(count=count, prompts=("a cat", "a dog", "a bird"), steps=2, guidance=3.0, seed=7)
    return ImageFolder(path=path, regularisation=True, generate=wanted)


def draw(model: DiffusionModel, folder: ImageFolder) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []
    assert folder.generate is not None

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    draw_missing(model, folder, folder.generate, 16, tell)
    return told


def test_an_absent_folder_is_filled_and_then_scanned(model: DiffusionModel, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "class")
    before = scan([folder], ImageLimits())
    assert not before.accepted
    assert "draws 10" in before.warnings[0].reason
    assert draw(model, folder)[-1] == ("drawing class pictures", 10, 10)
    account = scan([folder], ImageLimits())
    account.check()
    assert [example.caption for example in account.accepted] == [("a cat", "a dog", "a bird")[n % 3] for n in range(10)]
    assert all(example.regularisation and example.size == (16, 16) for example in account.accepted)
    assert len({example.key for example in account.accepted}) == 10
    assert missing_pictures(folder) == []
    assert draw(model, folder) == []


def test_what_is_missing_is_drawn_as_it_was(model: DiffusionModel, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "class")
    draw(model, folder)
    whole = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    for name in ("class-00003.png", "class-00008.png", "class-00008.txt"):
        (folder.path / name).unlink()
    assert missing_pictures(folder) == [3, 8]
    draw(model, folder)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == whole


def test_a_persons_own_pictures_count(model: DiffusionModel, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "class", count=3)
    folder.path.mkdir()
    Image.new("RGB", (16, 16), "red").save(folder.path / "mine.png")
    assert missing_pictures(folder) == [0, 1]
    draw(model, folder)
    assert len(list(folder.path.glob("*.png"))) == 3
    shutil.copy(folder.path / "mine.png", folder.path / "another.png")
    assert missing_pictures(folder) == []  # more than enough: nothing is drawn and nothing is taken away
    assert len(list(folder.path.glob("*.png"))) == 4
