"""`trainer enlarge`: what it writes and says, what it refuses, and its exit codes."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainer.cli.main import run
from trainer.core.tensors import write_tensors
from trainer.sampling.faces import FaceFinder, Square

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small pictures, one of them in a numbered folder, and a large one."""
    made = tmp_path / "in"
    (made / "10_thing").mkdir(parents=True)
    Image.linear_gradient("L").resize((48, 40)).save(made / "small.jpg")
    (made / "small.txt").write_text("a small one", encoding="utf-8")
    Image.radial_gradient("L").resize((40, 40)).save(made / "10_thing" / "deep.webp")
    Image.linear_gradient("L").save(made / "large.png")
    (made / "notes.csv").write_text("x", encoding="utf-8")
    return made


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def visible(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not path.name.startswith("."))


def sizes(folder: Path) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as file:
            found.append(file.size)
    return found


def test_small_pictures_go_into_another_folder(folder: Path, esrgan: Path, tmp_path: Path, capsys: Captured) -> None:
    before, out = contents(folder), tmp_path / "out"
    words = ["enlarge", str(folder), "--with", str(esrgan), "--out", str(out), "--least", "64"]
    assert run(words) == 0
    said = capsys.readouterr()
    assert visible(out) == ["10_thing/deep.png", "enlarged.jsonl", "small.png", "small.txt"]
    assert sizes(out) == [(64, 64), (71, 59)]
    assert contents(folder) == before
    assert "Large enough, and not copied (--all copies them): large.png." in said.out
    assert f"Enlarged 2 pictures into {out}, up to 1.6 times along each side." in said.out
    assert "Not copied: 1 other files, such as notes.csv" in said.err
    assert "enlarging pictures: 2/2" in said.err
    assert str(tmp_path) not in (out / "enlarged.jsonl").read_text(encoding="utf-8")
    (out / "small.png").unlink()
    assert run([*words, "--all"]) == 0
    said = capsys.readouterr()
    assert "Enlarged 1 pictures" in said.out
    assert "Copied 1 as they are. 1 were there already." in said.out
    assert (out / "large.png").read_bytes() == (folder / "large.png").read_bytes()
    assert run(["doctor", str(out), "--quick"]) == 0  # a folder to train on


def test_pictures_that_cannot_be_used_are_named_and_the_others_made(
    folder: Path, esrgan: Path, tmp_path: Path, capsys: Captured
) -> None:
    (folder / "broken.png").write_bytes((folder / "large.png").read_bytes()[:100])
    Image.new("RGB", (20, 200)).save(folder / "thin.png")
    out = tmp_path / "out"
    assert run(["enlarge", str(folder), "--with", str(esrgan), "--out", str(out), "--least", "64"]) == 3
    said = capsys.readouterr()
    assert sizes(out) == [(64, 64), (71, 59)]
    assert "2 files could not be used:" in said.err
    assert "broken.png: This PNG picture is damaged" in said.err
    assert "thin.png: It has 20 x 200 pixels; below 32" in said.err


def test_faces_are_restored_after_enlarging(
    folder: Path,
    esrgan: Path,
    restoreformer: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("cv2")
    seen: list[tuple[int, int]] = []

    def faces(_: FaceFinder, picture: Image.Image) -> list[Square]:
        seen.append(picture.size)
        return [Square(20, 20, 20)] if picture.size == (64, 64) else []

    monkeypatch.setattr(FaceFinder, "faces", faces)
    words = ["enlarge", str(folder), "--with", str(esrgan), "--least", "64", "--out"]
    assert run([*words, str(tmp_path / "plain")]) == 0
    assert run([*words, str(tmp_path / "restored"), "--faces", str(restoreformer)]) == 0
    assert seen == [(64, 64), (71, 59)]
    assert "Faces restored: 1." in capsys.readouterr().out
    plain, restored = (
        {name: (tmp_path / where / name).read_bytes() for name in ("10_thing/deep.png", "small.png")}
        for where in ("plain", "restored")
    )
    assert plain["small.png"] == restored["small.png"]
    assert plain["10_thing/deep.png"] != restored["10_thing/deep.png"]
    assert run([*words, str(tmp_path / "plain"), "--faces", str(restoreformer)]) == 2
    assert "other weights for faces" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["in", "in/10_thing", "in/new", "."])
def test_one_folder_may_not_lie_in_the_other(
    folder: Path, esrgan: Path, tmp_path: Path, capsys: Captured, where: str
) -> None:
    before = contents(folder)
    assert run(["enlarge", str(folder), "--with", str(esrgan), "--out", str(tmp_path / where)]) == 2
    assert "One folder lies in the other" in capsys.readouterr().err
    assert contents(folder) == before


def test_a_network_that_enlarges_nothing_is_refused(
    folder: Path, spandrel: None, tmp_path: Path, capsys: Captured
) -> None:
    from spandrel.architectures.ESRGAN import ESRGAN  # pyright: ignore[reportMissingImports]

    network = ESRGAN(num_filters=8, num_blocks=1, scale=1, shuffle_factor=4)
    path = tmp_path / "x1.safetensors"
    write_tensors(path, {name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    pickled = tmp_path / "x4.pth"
    torch.save({}, pickled)
    for weights, what in ((path, "of the size that they have"), (pickled, "can run code"), (folder, "no such file")):
        assert run(["enlarge", str(folder), "--with", str(weights), "--out", str(tmp_path / "out")]) == 2
        assert what in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_samples_are_enlarged_and_then_their_faces_restored(
    recipe_file: Callable[..., Path],
    esrgan: Path,
    restoreformer: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr("trainer.drawing.opening.pick_device", lambda: torch.device("cpu"))
    seen: list[tuple[int, int]] = []

    def faces(_: FaceFinder, picture: Image.Image) -> list[Square]:
        seen.append(picture.size)
        return [Square(6, 8, 20), Square(0, 0, 400)]

    monkeypatch.setattr(FaceFinder, "faces", faces)
    words = ["sample", str(recipe_file()), "-p", "a ball", "--steps", "1", "--upscale", str(esrgan), "--out"]
    assert run([*words, str(tmp_path / "plain")]) == 0
    assert run([*words, str(tmp_path / "restored"), "--faces", str(restoreformer)]) == 0
    said = capsys.readouterr()
    assert seen == [(32, 32)]
    assert "Faces restored: 1; left alone, since larger than the network's 512 pixels: 1." in said.out
    assert sizes(tmp_path / "plain")[0] == sizes(tmp_path / "restored")[0] == (32, 32)
    assert (tmp_path / "plain" / "00.png").read_bytes() != (tmp_path / "restored" / "00.png").read_bytes()
    assert run([*words, str(tmp_path / "none"), "--faces", str(esrgan)]) == 2
    assert "it is not made to restore faces" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
