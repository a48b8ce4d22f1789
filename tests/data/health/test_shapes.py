"""Buckets and what they do to pictures: enlarged, cut, lonely, moved."""

from collections.abc import Callable
from pathlib import Path

from trainer.data.health.examining import Report
from trainer.data.health.findings import Finding

Painter = Callable[..., Path]
Examine = Callable[..., Report]
OfKind = Callable[[Report, str], Finding | None]


def test_pictures_that_are_enlarged_or_cut_are_named_the_worst_first(
    paint: Painter, report_of: Examine, of_kind: OfKind
) -> None:
    paint("fits.png", shade=1, caption="zwx, 1")
    paint("small.png", size=(50, 50), shade=2, caption="zwx, 2")
    paint("smaller.png", size=(32, 32), shade=3, caption="zwx, 3")
    folder = paint("long.png", size=(900, 100), shade=4, caption="zwx, 4").parent
    report = report_of({"path": folder}, closer=False)
    enlarged, cropped = of_kind(report, "enlarged"), of_kind(report, "much-cropped")
    assert enlarged is not None
    assert enlarged.where == (f"{folder}/smaller.png", f"{folder}/small.png")
    assert "1 of them to at least twice" in enlarged.what
    assert "trainer enlarge FOLDER --with WEIGHTS --out FOLDER --least 112." in enlarged.mend  # 64, and 3/4 of 64
    assert cropped is not None
    assert cropped.where == (f"{folder}/long.png",)
    assert "56%" in cropped.what  # 9 : 1 in 4 : 1


def test_extreme_shapes_are_told_where_they_are_not_cut(paint: Painter, report_of: Examine, of_kind: OfKind) -> None:
    folder = paint("long.png", size=(640, 160), caption="zwx, long").parent
    report = report_of({"path": folder}, closer=False)
    found = of_kind(report, "extreme-aspect")
    assert found is not None
    assert found.where == (f"{folder}/long.png",)
    assert of_kind(report, "much-cropped") is None


def test_tiny_pictures_are_told_where_they_are_not_enlarged(
    paint: Painter, report_of: Examine, of_kind: OfKind
) -> None:
    paint("good.png", shade=1, caption="zwx, good")
    folder = paint("tiny.png", size=(20, 20), shade=2, caption="zwx, tiny").parent
    report = report_of({"path": folder}, closer=False, buckets={"upscale": False})
    found = of_kind(report, "tiny")
    assert found is not None
    assert found.where == (f"{folder}/tiny.png",)
    assert of_kind(report, "enlarged") is None


def test_lonely_buckets_make_smaller_batches_or_their_pictures_move(
    paint: Painter, report_of: Examine, of_kind: OfKind
) -> None:
    for number in range(4):
        paint(f"{number}.png", shade=number, caption=f"zwx, {number}")
    folder = paint("wide.png", size=(96, 64), shade=9, caption="zwx, wide").parent
    shrunk = report_of({"path": folder}, batch=3, closer=False)
    lonely = of_kind(shrunk, "small-buckets")
    assert lonely is not None
    assert "(1)" in lonely.what
    assert "data.buckets.small=move" in lonely.mend
    assert [(one.pictures, one.small, one.moved) for one in shrunk.buckets] == [(4, False, 0), (1, True, 0)]
    moved = report_of({"path": folder}, batch=3, closer=False, buckets={"small": "move"})
    assert [(one.pictures, one.small, one.moved) for one in moved.buckets] == [(5, False, 1)]
    told = of_kind(moved, "moved-pictures")
    assert told is not None
    assert of_kind(moved, "small-buckets") is None


def test_every_picture_is_in_exactly_one_bucket(paint: Painter, report_of: Examine) -> None:
    paths = [
        paint(f"{number}.png", size=(64 + 9 * number, 150 - 9 * number), shade=number, caption="zwx")
        for number in range(12)
    ]
    report = report_of({"path": paths[0].parent, "repeats": 3}, closer=False, batch=2)
    assert sum(one.pictures for one in report.buckets) == 12
    assert sum(one.showings for one in report.buckets) == 36
    aspects = [one.bucket.width / one.bucket.height for one in report.buckets]
    assert aspects == sorted(aspects)
    assert all(0 <= one.lost < 0.5 for one in report.buckets)
