"""Every picture is looked at once; nothing that changed is taken for what it was."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.core.errors import DataError
from trainer.data import scanning
from trainer.data.account import Account
from trainer.data.decoding import ImageLimits
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan
from trainer.data.sources import base
from trainer.data.sources.folder import ImageFolder

LIMITS = ImageLimits()
Painter = Callable[..., Path]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that were decoded; files of any age are believed to be at rest."""
    seen: list[str] = []
    honest = scanning.look

    def counting(content: bytes, where: str, limits: ImageLimits) -> object:
        seen.append(Path(where).name)
        return honest(content, where, limits)

    monkeypatch.setattr(scanning, "look", counting)
    monkeypatch.setattr(base, "_STILL_MOVING", 0)
    return seen


def account_of(folder: Path, memory: Path | None = None, **settings: object) -> Account:
    return scan([ImageFolder.model_validate({"path": folder, **settings})], LIMITS, memory=memory)


def test_a_second_scan_decodes_nothing_and_finds_the_same(paint: Painter, tmp_path: Path, looks: list[str]) -> None:
    for number in range(5):
        paint(f"{number}.png", shade=number, caption=f"number {number}")
    folder = tmp_path / "pictures"
    first = account_of(folder, tmp_path / "memory")
    assert len(looks) == 5
    second = account_of(folder, tmp_path / "memory")
    assert len(looks) == 5
    assert first == second
    assert account_of(folder) == first  # and without any memory


@pytest.mark.skipif(os.name == "nt", reason="Windows does not keep the time of the last change")
def test_an_edit_that_keeps_size_and_time_is_seen(paint: Painter, tmp_path: Path, looks: list[str]) -> None:
    path = paint("a.bmp", shade=1)
    paint("b.bmp", shade=2)
    before = account_of(path.parent, tmp_path / "memory")
    facts = path.stat()
    paint("a.bmp", shade=77)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    after = account_of(path.parent, tmp_path / "memory")
    assert looks.count("a.bmp") == 2
    assert looks.count("b.bmp") == 1
    assert before.accepted[0].key != after.accepted[0].key


@pytest.mark.skipif(os.name == "nt", reason="Windows does not keep the time of the last change")
def test_a_picture_put_in_place_of_another_is_seen(paint: Painter, tmp_path: Path, looks: list[str]) -> None:
    path, other = paint("a.bmp", shade=1), paint("b.bmp", shade=2)
    account_of(path.parent, tmp_path / "memory")
    other.replace(path)
    assert len(account_of(path.parent, tmp_path / "memory").accepted) == 1
    assert looks.count("a.bmp") == 2  # a rename changes the entry, so it is looked at


def test_a_file_changed_just_now_is_not_believed(paint: Painter, tmp_path: Path) -> None:
    path = paint("a.png")
    assert base.stamp_of(path.stat()) == ""
    old = time.time() - 100
    os.utime(path, (old, old))
    assert base.stamp_of(path.stat()) == ""  # the entry itself has changed


def test_other_limits_are_another_look(paint: Painter, tmp_path: Path, looks: list[str]) -> None:
    folder = paint("a.png", size=(100, 100)).parent
    account_of(folder, tmp_path / "memory")
    small = scan([ImageFolder(path=folder)], ImageLimits(pixels=5_000), memory=tmp_path / "memory")
    assert not small.accepted
    assert "pixels" in small.rejected[0].reason
    assert len(looks) == 2


def test_a_refused_picture_is_looked_at_each_time(paint: Painter, tmp_path: Path, looks: list[str]) -> None:
    folder = paint("a.png").parent
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    for _ in range(2):
        account = account_of(folder, tmp_path / "memory")
        assert [remark.name for remark in account.rejected] == ["b.png"]
    assert sorted(looks) == ["a.png", "b.png", "b.png"]


def mask_file(path: Path, box: tuple[int, int, int, int] | None, size: tuple[int, int] = (64, 64)) -> None:
    mask = Image.new("L", size, 0)
    if box is not None:
        mask.paste(255, box)
    mask.save(path)


def test_masks_belong_to_their_pictures(paint: Painter, tmp_path: Path) -> None:
    folder = paint("a.png", shade=1, caption="a").parent
    for name in ("b.png", "c.png", "d.png"):
        paint(name, shade=ord(name[0]), caption=name)
    mask_file(folder / "a_mask.png", (0, 0, 32, 64))
    mask_file(folder / "b-masklabel.png", None)
    mask_file(folder / "c.mask.png", (0, 0, 9, 9), size=(64, 32))
    account = account_of(folder, masks="files")
    assert {example.name: bool(example.mask_key) for example in account.accepted} == {"a.png": True, "d.png": False}
    why = {remark.name: remark.reason for remark in account.rejected}
    assert "black everywhere" in why["b.png"]
    assert "another shape" in why["c.png"]
    assert {remark.name for remark in account.masks} == {"a_mask.png", "b-masklabel.png", "c.mask.png"}
    assert account.found == len(list(folder.iterdir()))
    assert ("d.png", "has no mask, so all of it is learned from") in [(r.name, r.reason) for r in account.warnings]
    opened = OpenSources([ImageFolder(path=folder, masks="files")])
    first = account.accepted[0]
    mask = opened.mask(first, opened.picture(first, LIMITS), LIMITS)
    assert mask is not None
    assert mask.getbbox() == (0, 0, 32, 64)


def test_transparency_is_a_mask_where_the_source_says_so(paint: Painter) -> None:
    folder = paint("opaque.png", shade=1).parent
    pixels = np.zeros((40, 60, 4), np.uint8)
    Image.fromarray(pixels).save(folder / "nothing.png")
    pixels[10:20, 5:50] = 255
    Image.fromarray(pixels).save(folder / "part.png")
    account = account_of(folder, masks="alpha")
    assert {example.name: example.mask_key for example in account.accepted} == {"opaque.png": "", "part.png": "alpha"}
    assert "transparent everywhere" in account.rejected[0].reason
    plain = account_of(folder)
    assert {example.name: example.mask_key for example in plain.accepted} == dict.fromkeys(
        ("opaque.png", "nothing.png", "part.png"), ""
    )


def test_a_mask_changed_after_the_scan_is_refused(paint: Painter) -> None:
    path = paint("a.png")
    mask_file(path.parent / "a_mask.png", (0, 0, 32, 64))
    source = ImageFolder(path=path.parent, masks="files")
    example = scan([source], LIMITS).accepted[0]
    mask_file(path.parent / "a_mask.png", (0, 0, 16, 64))
    opened = OpenSources([source])
    with pytest.raises(DataError, match="mask was changed"):
        opened.mask(example, opened.picture(example, LIMITS), LIMITS)


def test_held_out_pictures_are_accounted_for_and_not_trained_on(paint: Painter, tmp_path: Path) -> None:
    paint("train/a.png", shade=1, caption="a")
    paint("kept/b.png", shade=2, caption="b")
    folder = tmp_path / "pictures"
    account = scan([ImageFolder(path=folder / "train"), ImageFolder(path=folder / "kept", held_out=True)], LIMITS)
    assert [example.name for example in account.accepted] == ["a.png", "b.png"]
    assert [example.name for example in account.training] == ["a.png"]
    assert [example.name for example in account.held_out] == ["b.png"]


def test_links_are_read_and_never_out_of_the_folder(paint: Painter, tmp_path: Path) -> None:
    path = paint("a.png", shade=1)
    link = path.parent / "link.png"
    link.symlink_to("a.png")
    source = ImageFolder(path=path.parent)
    example = next(one for one in scan([source], LIMITS).accepted if one.name == "link.png")
    assert OpenSources([source]).content(example, LIMITS) == path.read_bytes()
    outside = tmp_path / "outside.png"
    outside.write_bytes(path.read_bytes())
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(DataError, match="out of the folder"):
        OpenSources([source]).content(example, LIMITS)
