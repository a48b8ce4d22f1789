"""The doctor sees what is wrong, says which files, and nothing where all is well."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data.health.examining import Report
from trainer.data.health.findings import Finding

Painter = Callable[..., Path]
Examine = Callable[..., Report]
OfKind = Callable[[Report, str], Finding | None]


@pytest.fixture
def healthy(paint: Painter) -> Path:
    for number in range(4):
        paint(f"{number}.png", shade=number, caption=f"zwx, number {number}")
    return paint("4.png", shade=4, caption="zwx, the last").parent


@pytest.fixture
def found(healthy: Path, report_of: Examine) -> Callable[..., Report]:
    """The report on the healthy folder, whatever was put into it, without a closer look: its pictures are plain."""

    def examine(**changes: object) -> Report:
        return report_of({"path": healthy}, closer=False, **changes)

    return examine


def test_nothing_is_found_in_a_healthy_folder(found: Callable[..., Report]) -> None:
    assert found(batch=5).findings == ()


def the(report: Report, kind: str) -> Finding:
    (one,) = [finding for finding in report.findings if finding.kind == kind]
    return one


def test_refused_files_are_errors_unless_they_are_skipped(healthy: Path, found: Callable[..., Report]) -> None:
    (healthy / "bad.png").touch()
    report = found()
    one = the(report, "refused-files")
    assert (one.level, one.where) == ("error", (f"{healthy}/bad.png",))
    assert report.refused
    skipped = found(on_reject="skip")
    assert the(skipped, "refused-files").level == "warning"
    assert not skipped.refused


def test_missing_and_empty_captions_and_the_trigger(
    healthy: Path, paint: Painter, found: Callable[..., Report]
) -> None:
    paint("bare.png", shade=9)
    paint("mute.png", shade=10, caption="  ")
    report = found()
    wordless = {finding.what: finding for finding in report.findings if finding.kind == "no-words"}
    assert {finding.where for finding in wordless.values()} == {(f"{healthy}/bare.png",), (f"{healthy}/mute.png",)}
    assert all(finding.level == "warning" and finding.mend for finding in wordless.values())
    # The pictures themselves can be shown, not only named.
    names = [report.account.accepted[place].name for finding in wordless.values() for place in finding.places]
    assert sorted(names) == ["bare.png", "mute.png"]
    lacking = the(report, "trigger-missing")
    assert lacking.level == "note"
    assert set(lacking.where) == {f"{healthy}/bare.png", f"{healthy}/mute.png"}
    assert the(found(captions={}), "no-trigger").level == "note"


def test_token_overflow_counts_what_the_rules_make_of_the_caption(found: Callable[..., Report]) -> None:
    report = found(captions={"trigger": "zwx", "suffix": " ".join(["word"] * 80)})
    assert "up to 8 are cut off" in the(report, "token-overflow").what
    assert report.cut[0].tokens == 75 + report.cut[0].over
    assert [one.over for one in report.cut] == [8] * 5
    assert report.cut[0].lost == "word"


def test_errors_come_first(healthy: Path, paint: Painter, found: Callable[..., Report]) -> None:
    (healthy / "bad.png").touch()
    paint("bare.png", shade=9)
    levels = [finding.level for finding in found(batch=100).findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert set(levels) == {"error", "warning", "note"}


def test_regularisation_shares_and_bleeding_triggers(
    healthy: Path, paint: Painter, report_of: Examine, of_kind: OfKind
) -> None:
    other = paint("../other/a.png", shade=30, caption="a zwx here").parent
    held = paint("../held/a.png", shade=40, caption="zwx, held").parent
    report = report_of(
        {"path": healthy, "repeats": 3},
        {"path": other, "regularisation": True, "weight": 5.0},
        {"path": held, "held_out": True, "repeats": 7},
        batch=6,
        closer=False,
    )
    assert [(one.pictures, one.showings, one.share) for one in report.shares] == [
        (5, 15, 0.75),
        (1, 1, 0.25),
        (1, 0, 0.0),
    ]
    assert [(one.regularisation, one.held_out) for one in report.shares] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    (bucket,) = report.buckets
    assert (bucket.pictures, bucket.showings, bucket.batches) == (6, 16, 3)
    share, bleeding = of_kind(report, "regularisation-share"), of_kind(report, "trigger-in-regularisation")
    assert share is not None
    assert "25%" in share.what
    assert bleeding is not None
    assert (bleeding.level, bleeding.where) == ("warning", (f"{other}/a.png",))


def test_a_set_that_is_all_held_out_cannot_be_trained_on(healthy: Path, report_of: Examine, of_kind: OfKind) -> None:
    report = report_of({"path": healthy, "held_out": True}, closer=False)
    found = of_kind(report, "nothing-to-train-on")
    assert found is not None
    assert found.level == "error"
    assert report.buckets == ()


def test_a_source_that_is_hardly_seen_is_named(
    healthy: Path, paint: Painter, report_of: Examine, of_kind: OfKind
) -> None:
    faint = paint("../faint/a.png", shade=30, caption="zwx, rare").parent
    report = report_of({"path": healthy, "repeats": 100}, {"path": faint}, closer=False)
    found = of_kind(report, "faint-sources")
    assert found is not None
    assert found.where == (str(faint),)
