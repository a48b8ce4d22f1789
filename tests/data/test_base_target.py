"""Sources whose target is the base model's own answer: in the settings, in batches, in the cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from trainer.batch import Batch, Conditioning
from trainer.core.seeds import Seeds
from trainer.data.batches import CachedBatches, DataSettings
from trainer.data.filling import fill_cache
from trainer.data.scanning import scan

Painter = Callable[..., Path]
SEEDS = Seeds(5)


@pytest.fixture
def settings_of(paint: Painter, tmp_path: Path) -> Callable[..., DataSettings]:
    """Three pictures, learned with a trigger; and once more as further sources say."""
    for number in range(3):
        paint(f"own/{number}.png", shade=number, caption=f"cat, number {number}")

    def make(*more: dict[str, Any]) -> DataSettings:
        return DataSettings.model_validate(
            {
                "sources": [{"kind": "folder", "path": tmp_path / "pictures/own"}, *more],
                "resolution": 64,
                "captions": {"trigger": "zwx"},
                "cache": {"folder": tmp_path / "cache"},
            }
        )

    return make


@pytest.fixture
def once_more(tmp_path: Path) -> dict[str, Any]:
    return {
        "kind": "folder",
        "path": tmp_path / "pictures/own",
        "regularisation": True,
        "target": "base",
        "weight": 0.5,
    }


def opened(settings: DataSettings, encoders: Any, *, live: bool = False) -> CachedBatches:
    examples = scan(settings.parts, settings.limits).accepted
    return CachedBatches(examples, settings, encoders.both, SEEDS, batch=2, live_words=live)


def an_epoch(settings: DataSettings, encoders: Any, *, live: bool = False) -> list[Batch]:
    batches = opened(settings, encoders, live=live)
    return [batches.numbered(number) for number in range(batches.batches_per_epoch)]


def fill(settings: DataSettings, encoders: Any) -> tuple[int, int]:
    report = fill_cache(scan(settings.parts, settings.limits).accepted, settings, encoders.both, SEEDS)
    return report.encoded_pictures, report.encoded_captions


def test_only_rows_of_such_a_source_ask_for_the_base(
    settings_of: Callable[..., DataSettings], once_more: dict[str, Any], encoders: Any
) -> None:
    settings = settings_of(once_more)
    fill(settings, encoders)
    asked = 0
    for live in (False, True):
        for batch in an_epoch(settings, encoders, live=live):
            halves = [row for row in range(len(batch)) if batch.weight[row] == 0.5]
            filling = [row for row in range(len(batch)) if batch.weight[row] == 0]
            assert set(halves) <= set(batch.from_base) <= {*halves, *filling}
            assert list(batch.from_base) == sorted(batch.from_base)
            asked += len(halves)
            if isinstance(batch.words, tuple):  # the words themselves
                triggered = [row for row, words in enumerate(batch.words) if words.startswith("zwx")]
                assert not set(triggered) & set(batch.from_base)
    assert asked == 6


def test_without_such_a_source_no_row_asks(settings_of: Callable[..., DataSettings], encoders: Any) -> None:
    settings = settings_of()
    fill(settings, encoders)
    assert [batch.from_base for batch in an_epoch(settings, encoders)] == [(), ()]


def test_the_same_pictures_once_more_need_no_more_latents(
    settings_of: Callable[..., DataSettings], once_more: dict[str, Any], encoders: Any
) -> None:
    """What is in the cache already stays valid: the target is no part of any key."""
    assert fill(settings_of(), encoders) == (3, 3)
    assert fill(settings_of(once_more), encoders) == (0, 3)  # three captions without the trigger
    assert fill(settings_of({**once_more, "target": "picture"}), encoders) == (0, 0)


def test_the_picture_that_is_asked_about_is_the_one_that_is_learned(
    settings_of: Callable[..., DataSettings], once_more: dict[str, Any], encoders: Any
) -> None:
    settings = settings_of(once_more)
    fill(settings, encoders)
    by_key: dict[str, set[bool]] = {}
    for batch in an_epoch(settings, encoders):
        for row, key in enumerate(batch.keys):
            by_key.setdefault(key, set()).add(row in batch.from_base)
        part = batch.take(batch.from_base)
        assert isinstance(batch.words, Conditioning)
        assert isinstance(part.words, Conditioning)
        assert torch.equal(part.words.tokens, batch.words.tokens[list(batch.from_base)])
    assert list(by_key.values()) == [{True, False}] * 3


@pytest.mark.parametrize("kind", ["folder", "webdataset", "huggingface", "sd_scripts"])
def test_the_trigger_is_never_kept_from_meaning_anything(kind: str, settings_of: Callable[..., DataSettings]) -> None:
    with pytest.raises(ValidationError, match="regularisation: true"):
        settings_of({"kind": kind, "path": "x", "target": "base"})


def test_a_list_of_sd_scripts_hands_it_to_its_subsets(tmp_path: Path, settings_of: Callable[..., DataSettings]) -> None:
    listed = tmp_path / "data.toml"
    listed.write_text(
        f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{(tmp_path / "pictures/own").as_posix()}"\n',
        encoding="utf-8",
    )
    source = {"kind": "sd_scripts", "path": str(listed), "regularisation": True, "target": "base"}
    assert [part.target for part in settings_of(source).parts] == ["picture", "base"]
