"""The doctor sees what is wrong, says which files, and nothing where all is well."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data.batches import DataSettings
from trainer.data.doctor import Finding, count_buckets, examine, shares_of
from trainer.data.sources import scan

Painter = Callable[..., Path]


def findings_of(folder: Path, *, batch: int = 1, limit: int = 75, **settings: object) -> list[Finding]:
    whole = DataSettings.model_validate(
        {"sources": [{"kind": "folder", "path": folder}], "resolution": 64, "captions": {"trigger": "zwx"}, **settings}
    )
    account = scan(whole.sources, whole.limits)
    found = examine(
        account, whole, batch=batch, scale=4, count_tokens=lambda text: len(text.split()), token_limit=limit
    )
    json.dumps([finding.as_json() for finding in found])
    return found


@pytest.fixture
def healthy(paint: Painter) -> Path:
    for number in range(4):
        paint(f"{number}.png", shade=number, caption=f"zwx, number {number}")
    return paint("4.png", shade=4, caption="zwx, the last").parent


def test_nothing_is_found_in_a_healthy_folder(healthy: Path) -> None:
    assert findings_of(healthy, batch=5) == []


def the(found: list[Finding], words: str) -> Finding:
    (one,) = [finding for finding in found if words in finding.what]
    return one


def test_refused_files_are_errors_unless_they_are_skipped(healthy: Path) -> None:
    (healthy / "bad.png").touch()
    found = the(findings_of(healthy), "empty")
    assert (found.level, found.where) == ("error", (f"{healthy}/bad.png",))
    assert the(findings_of(healthy, on_reject="skip"), "empty").level == "warning"


def test_missing_and_empty_captions_duplicates_and_the_trigger(healthy: Path, paint: Painter) -> None:
    paint("bare.png", shade=9)
    paint("mute.png", shade=10, caption="  ")
    paint("twin.png", shade=1, caption="zwx, number one again")
    found = findings_of(healthy)
    assert the(found, "no caption").where == (f"{healthy}/bare.png",)
    assert the(found, "caption is empty").where == (f"{healthy}/mute.png",)
    assert the(found, "byte for byte").where == (f"{healthy}/1.png", f"{healthy}/twin.png")
    assert set(the(found, "lack the trigger").where) == {f"{healthy}/bare.png", f"{healthy}/mute.png"}
    assert the(findings_of(healthy, captions={}), "No trigger").level == "note"


def test_small_and_long_pictures_and_lonely_buckets(healthy: Path, paint: Painter) -> None:
    paint("small.png", size=(32, 32), shade=11, caption="zwx, small")
    paint("long.png", size=(900, 100), shade=12, caption="zwx, long")
    found = findings_of(healthy, batch=3)
    assert the(found, "smaller than").where == (f"{healthy}/small.png",)
    assert the(found, "lose more than").where == (f"{healthy}/long.png",)
    assert "128x32 (1)" in the(found, "fewer showings").what


def test_token_overflow_counts_what_the_rules_make_of_the_caption(healthy: Path) -> None:
    found = findings_of(healthy, limit=4, captions={"trigger": "zwx", "suffix": "one two three"})
    assert "up to 2 are cut off" in the(found, "longer than 4 tokens").what


def test_regularisation_shares_and_bleeding_triggers(healthy: Path, paint: Painter, tmp_path: Path) -> None:
    other = paint("../other/a.png", shade=30, caption="a zwx here").parent
    settings = DataSettings.model_validate(
        {
            "sources": [
                {"kind": "folder", "path": healthy, "repeats": 3},
                {"kind": "folder", "path": other, "regularisation": True, "weight": 5.0},
            ],
            "resolution": 64,
            "captions": {"trigger": "zwx"},
        }
    )
    account = scan(settings.sources, settings.limits)
    shares = shares_of(account)
    assert [(one.pictures, one.showings, one.share) for one in shares] == [(5, 15, 0.75), (1, 1, 0.25)]
    (bucket,) = count_buckets(account, settings, batch=6, scale=4)
    assert (bucket.pictures, bucket.showings, bucket.batches) == (6, 16, 3)
    found = examine(account, settings, scale=4)
    assert "25%" in the(found, "Regularisation pictures").what
    assert the(found, "regularisation captions hold").level == "warning"


def test_errors_come_first(healthy: Path, paint: Painter) -> None:
    (healthy / "bad.png").touch()
    paint("bare.png", shade=9)
    levels = [finding.level for finding in findings_of(healthy, batch=100)]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert set(levels) == {"error", "warning", "note"}
