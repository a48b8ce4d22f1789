"""Filled once, read in any order; every batch a pure function of its number."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from trainer.batch import Batch, Conditioning
from trainer.core.errors import DataError, NonFiniteError
from trainer.core.seeds import Seeds
from trainer.data.batches import CachedBatches, DataSettings
from trainer.data.captions import CaptionRules
from trainer.data.filling import CacheReport, encode_again, fill_cache
from trainer.data.scanning import scan

Painter = Callable[..., Path]
SEEDS = Seeds(5)


@pytest.fixture
def settings(paint: Painter, tmp_path: Path) -> DataSettings:
    """Seven pictures in three buckets, one source of them with repeats."""
    for number, size in enumerate([(64, 64), (70, 64), (200, 100), (100, 200), (64, 64)]):
        paint(f"own/{number}.png", size=size, shade=number, caption=f"cat, number {number}, sitting")
    for number in range(2):
        paint(f"ordinary/{number}.png", shade=50 + number, caption=f"thing {number}")
    return DataSettings.model_validate(
        {
            "sources": [
                {"kind": "folder", "path": tmp_path / "pictures/own", "repeats": 2},
                {"kind": "folder", "path": tmp_path / "pictures/ordinary", "regularisation": True, "weight": 0.5},
            ],
            "resolution": 64,
            "captions": {"trigger": "zwx", "dropout": 0.3, "shuffle_tags": True},
            "flip": True,
            "cache": {"folder": tmp_path / "cache"},
        }
    )


def fill(settings: DataSettings, encoders: Any, seeds: Seeds = SEEDS) -> CacheReport:
    return fill_cache(scan(settings.parts, settings.limits).accepted, settings, encoders.both, seeds)


def opened(settings: DataSettings, encoders: Any, batch: int = 3, world: int = 1, rank: int = 0) -> CachedBatches:
    examples = scan(settings.parts, settings.limits).accepted
    return CachedBatches(examples, settings, encoders.both, SEEDS, batch=batch, world=world, rank=rank)


def meaning(batch: Batch) -> Conditioning:
    assert isinstance(batch.words, Conditioning)
    return batch.words


def equal(a: Batch, b: Batch) -> bool:
    one, other = meaning(a), meaning(b)
    assert one.pooled is not None
    assert other.pooled is not None
    return (
        (a.number, a.slots, a.keys, a.total) == (b.number, b.slots, b.keys, b.total)
        and torch.equal(a.latents, b.latents)
        and torch.equal(one.tokens, other.tokens)
        and torch.equal(one.pooled, other.pooled)
        and torch.equal(a.weight, b.weight)
        and torch.equal(a.geometry.crop, b.geometry.crop)
    )


def test_a_second_filling_encodes_nothing(settings: DataSettings, encoders: Any) -> None:
    first = fill(settings, encoders)
    assert (first.encoded_pictures, first.reused_pictures) == (14, 0)  # each plain and mirrored
    assert first.encoded_captions > 7
    calls = len(encoders.pictures)
    second = fill(settings, encoders)
    assert second == CacheReport(
        encoded_pictures=0, reused_pictures=14, encoded_captions=0, reused_captions=first.encoded_captions
    )
    assert len(encoders.pictures) == calls


def test_changing_one_picture_encodes_one(settings: DataSettings, encoders: Any, paint: Painter) -> None:
    settings = settings.model_copy(update={"flip": False})
    fill(settings, encoders)
    paint("own/0.png", shade=99)
    report = fill(settings, encoders)
    assert (report.encoded_pictures, report.reused_pictures, report.encoded_captions) == (1, 6, 0)


def test_changing_one_caption_encodes_its_words_alone(settings: DataSettings, encoders: Any, paint: Painter) -> None:
    fill(settings, encoders)
    encoders.words.clear()
    paint("ordinary/0.png", shade=50, caption="other words")
    report = fill(settings, encoders)
    assert (report.encoded_pictures, report.encoded_captions) == (0, 1)
    assert encoders.words == {"other words"}


@pytest.mark.parametrize(
    "change", [{"resolution": 96}, {"pictures_identity": "pictures-2"}, {"words_identity": "words-2"}]
)
def test_whatever_changes_the_result_is_encoded_anew(
    settings: DataSettings, encoders: Any, change: dict[str, Any]
) -> None:
    before = fill(settings, encoders)
    if "resolution" in change:
        settings = settings.model_copy(update=change)
    else:
        encoders = replace(encoders, **change)
    report = fill(settings, encoders)
    assert report.encoded_pictures == (0 if "words_identity" in change else 14)
    assert report.encoded_captions == (before.encoded_captions if "words_identity" in change else 0)


def test_a_damaged_cache_is_made_again_and_gives_the_same_batches(settings: DataSettings, encoders: Any) -> None:
    fill(settings, encoders)
    before = list(islice(opened(settings, encoders).starting_at(0), 8))
    for shard in settings.cache.folder.glob("*/shard-*.arrow"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 255
        shard.write_bytes(content)
    report = fill(settings, encoders)
    assert report.encoded_pictures + report.encoded_captions > 0
    after = list(islice(opened(settings, encoders).starting_at(0), 8))
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))


def test_batches_follow_from_their_number_alone(settings: DataSettings, encoders: Any) -> None:
    fill(settings, encoders)
    unbroken = list(islice(opened(settings, encoders).starting_at(0), 20))
    for start in (1, 4, 5, 11, 19):
        resumed = list(islice(opened(settings, encoders).starting_at(start), 20 - start))
        assert all(equal(a, b) for a, b in zip(unbroken[start:], resumed, strict=True))


def test_each_epoch_draws_anew(settings: DataSettings, encoders: Any) -> None:
    fill(settings, encoders)
    batches = opened(settings, encoders)
    length = batches.batches_per_epoch
    seen = [batch for batch in islice(batches.starting_at(0), 6 * length) if batch.keys == batches.numbered(0).keys]
    assert not any(torch.equal(batches.numbered(0).latents, batch.latents) for batch in seen[1:])
    first, second = (
        [key for batch in islice(batches.starting_at(at), length) for key in batch.keys] for at in (0, length)
    )
    assert Counter(first) == Counter(second)
    assert first != second


def test_a_full_cache_needs_no_encoder(settings: DataSettings, encoders: Any) -> None:
    fill(settings, encoders)
    calls = len(encoders.pictures)
    encoders.words.clear()
    list(islice(opened(settings, encoders).starting_at(0), 10))
    assert len(encoders.pictures) == calls
    assert not encoders.words


def test_what_a_batch_says_of_its_examples(settings: DataSettings, encoders: Any) -> None:
    fill(settings, encoders)
    batches = opened(settings, encoders)
    examples = {example.key: example for example in batches.examples}
    for batch in islice(batches.starting_at(0), batches.batches_per_epoch):
        height, width = batch.geometry.target[0].tolist()
        assert batch.latents.shape == (len(batch), 4, height // 4, width // 4)
        assert batch.latents.dtype == batch.weight.dtype == meaning(batch).tokens.dtype == torch.float32
        assert meaning(batch).tokens.shape == (len(batch), 5, 6)
        for row, key in enumerate(batch.keys):
            assert batch.geometry.original[row].tolist() == [examples[key].size.height, examples[key].size.width]
            assert float(batch.weight[row]) == examples[key].weight


def test_latents_are_those_of_the_picture(settings: DataSettings, encoders: Any) -> None:
    """Out of a posterior without width comes the mean, which our small encoder makes of the colours."""
    plain = settings.model_copy(update={"flip": False})
    fill(plain, encoders)
    batches = opened(plain, encoders)
    colours = {
        example.key: int(example.name[0]) + (50 if example.regularisation else 0) for example in batches.examples
    }
    for batch in islice(batches.starting_at(0), batches.batches_per_epoch):
        for row, key in enumerate(batch.keys):
            mean = float(batch.latents[row, 0].mean())
            assert abs(mean - (colours[key] / 127.5 - 1)) < 0.1


def test_words_are_those_of_the_picture_or_none(settings: DataSettings, encoders: Any) -> None:
    settings = settings.model_copy(update={"captions": CaptionRules(trigger="zwx", dropout=0.3)})
    fill(settings, encoders)
    batches = opened(settings, encoders)

    def state(caption: str) -> torch.Tensor:
        return encoders.encode_words([caption]).tokens[0].half().float()

    dropped = 0
    for batch in islice(batches.starting_at(0), 60):
        for row, key in enumerate(batch.keys):
            example = next(one for one in batches.examples if one.key == key)
            caption = example.caption if example.regularisation else f"zwx, {example.caption}"
            if torch.equal(meaning(batch).tokens[row], state("")):
                dropped += 1
            else:
                assert torch.equal(meaning(batch).tokens[row], state(caption))
    assert 20 < dropped < 80


def test_live_words_are_those_that_the_cache_would_give(settings: DataSettings, encoders: Any) -> None:
    fill(settings, encoders)
    cached = opened(settings, encoders)
    live = replace(cached, live_words=True)
    for number in range(2 * cached.batches_per_epoch):
        one, other = live.numbered(number), cached.numbered(number)
        assert isinstance(one.words, tuple)
        assert torch.equal(encoders.encode_words(one.words).tokens.half().float(), meaning(other).tokens)
        assert torch.equal(one.latents, other.latents)
        assert one.to(torch.device("cpu")).words == one.words


def test_live_words_need_no_text_in_the_cache(settings: DataSettings, encoders: Any) -> None:
    fill_cache(scan(settings.parts, settings.limits).accepted, settings, encoders.both, SEEDS, words=False)
    assert not encoders.words
    assert replace(opened(settings, encoders), live_words=True).numbered(0).words
    with pytest.raises(DataError, match="caption is not in the cache"):
        opened(settings, encoders).numbered(0)


def test_processes_share_the_batch_and_fill_up_with_weight_0(settings: DataSettings, encoders: Any) -> None:
    fill(settings, encoders)
    one = opened(settings, encoders, batch=6)
    parts = [opened(settings, encoders, batch=2, world=3, rank=rank) for rank in range(3)]
    assert one.batches_per_epoch == parts[0].batches_per_epoch
    filling = 0
    for number in range(2 * one.batches_per_epoch):
        whole, shares = one.numbered(number), [part.numbered(number) for part in parts]
        latents = torch.cat([share.latents for share in shares])[: whole.total]
        weights = torch.cat([share.weight for share in shares])
        assert torch.equal(latents, whole.latents)
        assert torch.equal(weights[: whole.total], whole.weight)
        assert not weights[whole.total :].any()
        assert len(shares[0]) == len(shares[1]) == len(shares[2])
        filling += len(weights) - whole.total
    assert filling > 0


def test_an_encoder_that_gives_nan_is_named_with_its_file(settings: DataSettings, encoders: Any) -> None:
    encoders.spoil = True
    with pytest.raises(NonFiniteError) as caught:
        fill(settings, encoders)
    assert str(caught.value.where).endswith(".png")
    encoders.spoil = False
    assert fill(settings, encoders).reused_pictures == 0  # nothing of it was kept


def test_a_broken_off_filling_keeps_what_it_had(settings: DataSettings, encoders: Any) -> None:
    honest, seen = encoders.encode_words, 0

    def interrupted(captions: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise KeyboardInterrupt
        return honest(captions)

    encoders.encode_words = interrupted
    with pytest.raises(KeyboardInterrupt):
        fill(settings, encoders)
    report = fill(settings, encoders)
    assert report.encoded_pictures == 0
    assert report.reused_captions == 16


def test_a_picture_that_is_not_cached_is_named(settings: DataSettings, encoders: Any) -> None:
    with pytest.raises(DataError, match="not in the cache"):
        opened(settings, encoders).numbered(0)


def test_a_file_that_changes_after_the_scan_is_refused(settings: DataSettings, encoders: Any, paint: Painter) -> None:
    examples = scan(settings.parts, settings.limits).accepted
    paint("own/0.png", shade=77)
    with pytest.raises(DataError, match="changed"):
        fill_cache(examples, settings, encoders.both, SEEDS)


def test_filling_tells_how_far_it_is(settings: DataSettings, encoders: Any) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    fill_cache(scan(settings.parts, settings.limits).accepted, settings, encoders.both, SEEDS, progress=tell)
    phases = {what: (done, total) for what, done, total in told}
    assert phases["encoding pictures"] == (14, 14)
    assert phases["encoding captions"][0] == phases["encoding captions"][1]


def test_settings_refuse_nonsense(tmp_path: Path) -> None:
    for wrong in ({"sources": []}, {"sources": [{"kind": "folder", "path": "x"}], "resolutoin": 3}):
        with pytest.raises(ValidationError):
            DataSettings.model_validate(wrong)


def test_each_source_may_have_rules_of_its_own(paint: Painter, tmp_path: Path, encoders: Any) -> None:
    paint("a/0.png", shade=1, caption="one, two")
    paint("b/0.png", size=(96, 96), shade=2, caption="three")
    settings = DataSettings.model_validate(
        {
            "sources": [
                {"kind": "folder", "path": tmp_path / "pictures/a", "captions": {"trigger": "own"}, "flip": True},
                {"kind": "folder", "path": tmp_path / "pictures/b", "resolution": 96},
            ],
            "resolution": 64,
            "captions": {"trigger": "all"},
            "cache": {"folder": tmp_path / "cache"},
        }
    )
    report = fill(settings, encoders)
    assert report.encoded_pictures == 3  # the first one mirrored too
    assert encoders.words == {"own, one, two", "all, three"}
    assert set(settings.buckets_of(opened(settings, encoders).examples, 4)) == {(64, 64), (96, 96)}


def test_masks_come_with_their_pictures(paint: Painter, tmp_path: Path, encoders: Any) -> None:
    for number in range(4):
        paint(f"{number}.png", size=(64, 64), shade=number, caption="c")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 16, 64))
    mask.save(tmp_path / "pictures/2_mask.png")
    source = {"kind": "folder", "path": tmp_path / "pictures", "masks": "files", "flip": True}
    settings = DataSettings.model_validate(
        {"sources": [source], "resolution": 64, "cache": {"folder": tmp_path / "cache"}}
    )
    fill(settings, encoders)
    batches = opened(settings, encoders, batch=4)
    masked = next(example.key for example in batches.examples if example.mask_key)
    seen: set[int] = set()
    for batch in islice(batches.starting_at(0), 12):
        assert batch.mask is not None
        for row, key in enumerate(batch.keys):
            columns = batch.mask[row, 0].mean(dim=0)  # [w]
            if key != masked:
                assert bool((columns == 1).all())
                continue
            filled = torch.nonzero(columns > 0.5).flatten().tolist()
            assert filled in ([0, 1, 2, 3], [12, 13, 14, 15])  # on the left, or mirrored
            seen.add(filled[0])
    assert seen == {0, 12}
    plain = settings.model_copy(update={"sources": (settings.sources[0].model_copy(update={"masks": "none"}),)})
    (tmp_path / "pictures/2_mask.png").unlink()
    fill(plain, encoders)
    assert opened(plain, encoders, batch=4).numbered(0).mask is None


def test_several_places_show_all_of_a_long_picture(paint: Painter, tmp_path: Path, encoders: Any) -> None:
    path = paint("long.png", size=(320, 64), caption="c")
    stripes = Image.new("RGB", (320, 64))
    for column in range(5):
        stripes.paste((column * 60, 0, 0), (column * 64, 0, column * 64 + 64, 64))
    stripes.save(path)
    settings = DataSettings.model_validate(
        {
            "sources": [{"kind": "folder", "path": path.parent}],
            "resolution": 64,
            "buckets": {"max_aspect": 1},
            "crops": {"places": 5},
            "cache": {"folder": tmp_path / "cache"},
        }
    )
    assert fill(settings, encoders).encoded_pictures == 5
    batches = opened(settings, encoders, batch=1)
    seen = {
        (int(batch.geometry.crop[0, 1]), round(float(batch.latents[0, 0].mean() + 1) * 127.5 / 60))
        for batch in islice(batches.starting_at(0), 60)
    }
    assert seen == {(0, 0), (64, 1), (128, 2), (192, 3), (256, 4)}


def test_damage_found_while_training_is_mended_on_the_way(settings: DataSettings, encoders: Any) -> None:
    fill(settings, encoders)
    before = list(islice(opened(settings, encoders, batch=2).starting_at(0), 8))
    settings = settings.model_copy(update={"cache": settings.cache.model_copy(update={"memory": 0})})
    batches = opened(settings, encoders, batch=2)
    for shard in settings.cache.folder.glob("*/shard-*.arrow"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
        shard.write_bytes(content)
    with pytest.raises(DataError, match="not in the cache") as caught:
        list(islice(batches.starting_at(0), 8))
    assert "--verify" in str(caught.value)
    calls = len(encoders.pictures)
    batches.mend = lambda pictures, words: encode_again(settings, encoders.both, pictures=pictures, words=words)
    after = list(islice(batches.starting_at(0), 8))
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(encoders.pictures) > calls
