"""What the pixels tell, and that nobody looks at them twice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from trainer.data.batches import DataSettings
from trainer.data.health.examining import Report, look_closer
from trainer.data.health.findings import Finding
from trainer.data.health.looks import look_findings
from trainer.data.health.portraits import Portraits
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan

Show = Callable[..., Path]
Scene = Callable[..., Image.Image]
Examine = Callable[..., Report]
OfKind = Callable[[Report, str], Finding | None]


@pytest.fixture
def folder(tmp_path: Path, show: Show, scene: Scene) -> Path:
    for seed in range(6):
        show(f"pictures/{seed}.png", scene(seed))
    return tmp_path / "pictures"


def test_crisp_pictures_are_left_in_peace(folder: Path, report_of: Examine) -> None:
    kinds = {finding.kind for finding in report_of({"path": folder}).findings}
    assert not kinds & {"blurred", "softer-than-others", "one-colour"}


def test_a_blurred_picture_is_told_at_the_size_of_its_bucket(
    folder: Path, show: Show, scene: Scene, report_of: Examine, of_kind: OfKind
) -> None:
    show("pictures/soft.png", scene(20, (512, 512)).filter(ImageFilter.GaussianBlur(5)))
    report = report_of({"path": folder}, resolution=512)
    found = of_kind(report, "blurred")
    assert found is not None
    assert found.where == (f"{folder}/soft.png",)
    # Eight times smaller, it is as crisp as any.
    assert of_kind(report_of({"path": folder}, resolution=64), "blurred") is None


def test_a_picture_softer_than_its_fellows_is_a_note(
    folder: Path, show: Show, scene: Scene, report_of: Examine, of_kind: OfKind
) -> None:
    show("pictures/soft.png", scene(20, (512, 512)).filter(ImageFilter.GaussianBlur(1.5)))
    report = report_of({"path": folder}, resolution=512)
    found = of_kind(report, "softer-than-others")
    assert found is not None
    assert (found.level, found.where) == ("note", (f"{folder}/soft.png",))
    assert of_kind(report, "blurred") is None


def test_a_set_that_is_soft_as_a_whole_says_so(
    folder: Path, show: Show, scene: Scene, report_of: Examine, of_kind: OfKind
) -> None:
    for seed in range(6):
        show(f"pictures/{seed}.png", scene(seed, (256, 256)).filter(ImageFilter.GaussianBlur(4)))
    found = of_kind(report_of({"path": folder}, resolution=256), "blurred")
    assert found is not None
    assert "most of them" in found.what


def test_pictures_of_one_colour_are_told_and_are_not_blurred(
    folder: Path, show: Show, report_of: Examine, of_kind: OfKind
) -> None:
    show("pictures/blue.png", Image.new("RGB", (128, 128), "blue"))
    nearly = Image.new("RGB", (128, 128), "blue")
    nearly.putpixel((64, 64), (255, 255, 255))
    show("pictures/nearly.png", nearly)
    report = report_of({"path": folder})
    found = of_kind(report, "one-colour")
    assert found is not None
    assert set(found.where) == {f"{folder}/blue.png", f"{folder}/nearly.png"}
    assert of_kind(report, "blurred") is None


def masked(show: Show, scene: Scene, name: str, box: tuple[int, int, int, int]) -> Path:
    path = show(f"masked/{name}.png", scene(len(name), (64, 128)))
    mask = Image.new("L", (64, 128), 0)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    mask.save(path.parent / f"{name}-masklabel.png")
    return path.parent


def test_masks_that_leave_nothing_little_or_everything(
    show: Show, scene: Scene, report_of: Examine, of_kind: OfKind
) -> None:
    masked(show, scene, "all", (0, 0, 63, 127))
    masked(show, scene, "half", (0, 0, 63, 63))
    masked(show, scene, "little", (20, 60, 26, 66))
    folder = masked(show, scene, "cut away", (0, 0, 63, 20))
    # Square buckets alone: the middle of each picture is seen, half of it.
    report = report_of({"path": folder, "masks": "files"}, buckets={"max_aspect": 1})
    expected = {"white-masks": "all", "dark-masks": "little", "black-masks": "cut away"}
    for kind, name in expected.items():
        found = of_kind(report, kind)
        assert found is not None
        assert found.where == (f"{folder}/{name}.png",)
    assert report.portraits is not None
    by_name = {example.name: place for place, example in enumerate(report.account.accepted)}
    assert report.portraits.counts[by_name["half.png"]] == pytest.approx(0.5, abs=0.02)


def portraits_of(folder: Path, memory: Path | None) -> Portraits:
    settings = DataSettings.model_validate({"sources": [{"kind": "folder", "path": folder}], "resolution": 64})
    opened = OpenSources(settings.parts)
    return look_closer(scan(opened.parts, settings.limits), settings, opened, 4, memory=memory)


def test_portraits_are_remembered_and_are_the_same(
    folder: Path, show: Show, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, first = portraits_of(folder, None), portraits_of(folder, tmp_path / "portraits")
    show("pictures/new.png", scene(40))
    looked: list[str] = []
    honest = OpenSources.picture

    def counting(self: OpenSources, example: object, *rest: object, **more: object) -> object:
        looked.append(example.name)  # pyright: ignore[reportAttributeAccessIssue]
        return honest(self, example, *rest, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(OpenSources, "picture", counting)
    second = portraits_of(folder, tmp_path / "portraits")
    assert looked == ["new.png"]
    for column in ("faces", "tints", "blur", "contrast", "counts"):
        assert np.array_equal(getattr(fresh, column), getattr(first, column))
        assert np.array_equal(getattr(first, column), getattr(second, column)[: len(fresh.blur)])


def test_a_picture_that_changes_after_the_scan_is_an_error_and_is_not_remembered(
    folder: Path, scene: Scene, tmp_path: Path
) -> None:
    settings = DataSettings.model_validate({"sources": [{"kind": "folder", "path": folder}], "resolution": 64})
    opened = OpenSources(settings.parts)
    account = scan(opened.parts, settings.limits)
    scene(77).save(folder / "2.png")
    (folder / "4.png").unlink()
    memory = tmp_path / "portraits"
    seen = look_closer(account, settings, opened, 4, memory=memory)
    assert set(seen.faults) == {2, 4}
    (found, *_) = look_findings(account, seen)
    assert (found.kind, found.level, found.places) == ("changed-files", "error", (2, 4))
    scene(2).save(folder / "2.png")
    scene(4).save(folder / "4.png")
    assert not look_closer(account, settings, opened, 4, memory=memory).faults


def test_progress_is_told_picture_by_picture(folder: Path) -> None:
    settings = DataSettings.model_validate({"sources": [{"kind": "folder", "path": folder}], "resolution": 64})
    opened = OpenSources(settings.parts)
    told: list[tuple[str, int, int]] = []

    def progress(title: str, done: int, total: int) -> None:
        told.append((title, done, total))

    look_closer(scan(opened.parts, settings.limits), settings, opened, 4, progress)
    assert [(done, total) for _, done, total in told] == [(number, 6) for number in range(1, 7)]
