"""Pictures that are there twice, and what that means where they stand."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from trainer.data.health.examining import Report
from trainer.data.health.findings import Finding

Show = Callable[..., Path]
Scene = Callable[..., Image.Image]
Examine = Callable[..., Report]
OfKind = Callable[[Report, str], Finding | None]

MEANINGS = (
    "held-out-copies",
    "regularisation-copies",
    "contradictory-copies",
    "exact-copies",
    "near-copies",
    "mirrored-copies",
)


@pytest.fixture
def folder(tmp_path: Path, show: Show, scene: Scene) -> Path:
    for seed in range(4):
        show(f"learn/{seed}.png", scene(seed))
    return tmp_path / "learn"


def untouched(image: Image.Image) -> Image.Image:
    return image


def smaller(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def told(report: Report) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings if finding.kind in MEANINGS}


def test_different_pictures_are_no_copies(folder: Path, report_of: Examine) -> None:
    report = report_of({"path": folder})
    assert told(report) == {}
    assert report.copies == ()


def test_each_sort_of_copy_is_told(folder: Path, show: Show, scene: Scene, report_of: Examine) -> None:
    show("learn/again.png", scene(0))
    show("learn/again too.png", scene(0))
    show("learn/badly.jpg", scene(1), quality=40)
    show("learn/mirrored.png", ImageOps.mirror(scene(2)))
    report = report_of({"path": folder})
    found = told(report)
    assert set(found) == {"exact-copies", "near-copies", "mirrored-copies"}
    assert found["exact-copies"].where == (f"{folder}/0.png = {folder}/again too.png = {folder}/again.png",)
    assert "byte for byte" in found["exact-copies"].what
    assert found["near-copies"].where == (f"{folder}/1.png = {folder}/badly.jpg",)
    assert found["mirrored-copies"].where == (f"{folder}/2.png = {folder}/mirrored.png",)
    assert [found[kind].level for kind in found] == ["warning", "warning", "note"]
    assert told(report_of({"path": folder}, flip=True))["mirrored-copies"].level == "warning"


def test_without_a_closer_look_only_exact_copies_are_known(
    folder: Path, show: Show, scene: Scene, report_of: Examine
) -> None:
    show("learn/again.png", scene(0))
    show("learn/badly.jpg", scene(1), quality=40)
    assert set(told(report_of({"path": folder}, closer=False))) == {"exact-copies"}


@pytest.mark.parametrize("change", [untouched, smaller, ImageOps.mirror], ids=["exact", "near", "mirrored"])
def test_a_copy_among_the_held_out_is_a_warning_of_its_own(
    folder: Path, show: Show, scene: Scene, report_of: Examine, change: Callable[..., Image.Image]
) -> None:
    held = show("held/test.png", change(scene(3))).parent
    report = report_of({"path": folder}, {"path": held, "held_out": True})
    found = told(report)
    assert set(found) == {"held-out-copies"}
    assert found["held-out-copies"].level == "warning"
    assert found["held-out-copies"].where == (f"{folder}/3.png = {held}/test.png",)
    assert found["held-out-copies"].places == (3, 4)


def test_held_out_pictures_may_be_copies_of_each_other_by_the_way(
    folder: Path, show: Show, scene: Scene, report_of: Examine
) -> None:
    show("held/a.png", scene(10))
    held = show("held/b.png", scene(10)).parent
    assert set(told(report_of({"path": folder}, {"path": held, "held_out": True}))) == {"exact-copies"}


def test_a_copy_of_a_copy_leaks_too(folder: Path, show: Show, scene: Scene, report_of: Examine) -> None:
    """Byte-identical pictures are compared as one; all of them belong to the group."""
    show("learn/again.png", scene(3))
    held = show("held/small.png", scene(3).resize((96, 64))).parent
    found = told(report_of({"path": folder}, {"path": held, "held_out": True}))
    assert found["held-out-copies"].where == (f"{folder}/3.png = {folder}/again.png = {held}/small.png",)
    assert set(found) == {"held-out-copies", "exact-copies"}


def test_the_same_picture_with_other_words_and_as_regularisation(
    folder: Path, show: Show, scene: Scene, report_of: Examine
) -> None:
    show("learn/again.png", scene(0), "zwx, something else")
    plain = show("class/1.png", scene(1), "a scene").parent
    found = told(report_of({"path": folder}, {"path": plain, "regularisation": True}))
    assert set(found) == {"contradictory-copies", "regularisation-copies"}
    assert found["contradictory-copies"].where == (f"{folder}/0.png = {folder}/again.png",)
    assert found["regularisation-copies"].where == (f"{folder}/1.png = {plain}/1.png",)
    assert "a line each" in found["contradictory-copies"].mend


def test_many_groups_are_one_finding(folder: Path, show: Show, scene: Scene, report_of: Examine) -> None:
    for seed in range(12):
        show(f"learn/{seed}.png", scene(seed))
        show(f"learn/{seed} again.png", scene(seed))
    report = report_of({"path": folder})
    found = told(report)
    assert set(found) == {"exact-copies"}
    assert "12 pictures are" in found["exact-copies"].what
    assert "24 files" in found["exact-copies"].what
    assert len(found["exact-copies"].groups) == 12
    assert [group.sort for group in report.copies] == ["exact"] * 12


def test_pictures_that_the_base_is_asked_about_may_be_those_that_are_learned(
    folder: Path, show: Show, scene: Scene, report_of: Examine
) -> None:
    """They stand in nobody's way; other copies are told as ever."""
    once_more = {"path": folder, "regularisation": True}
    assert "regularisation-copies" in told(report_of({"path": folder}, once_more))
    assert told(report_of({"path": folder}, once_more | {"target": "base"})) == {}
    show("learn/again.png", scene(0))
    found = told(report_of({"path": folder}, once_more | {"target": "base"}))
    assert set(found) == {"exact-copies"}
    assert found["exact-copies"].where == (f"{folder}/0.png = {folder}/again.png",)
