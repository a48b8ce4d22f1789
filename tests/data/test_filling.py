"""The filling of the cache: nothing twice, nothing partial, each entry the same however it came about."""

import logging
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from loky.process_executor import ProcessPoolExecutor
from PIL import Image
from torch import Tensor

from trainer.batch import Encoders, Posterior
from trainer.core.errors import DataError, NonFiniteError, TrainerError
from trainer.core.seeds import Seeds
from trainer.data import decode_ahead, encoding, filling, gathering
from trainer.data.batches import DataSettings
from trainer.data.cache import TensorCache
from trainer.data.decoder import Decoder, PictureWork
from trainer.data.decoding import Picture
from trainer.data.examples import ExampleTable
from trainer.data.filling import CacheReport, Needs, encode_again, fill_cache, needed_keys
from trainer.data.opened import OpenSources
from trainer.data.planning import Share
from trainer.data.scanning import scan

Painter = Callable[..., Path]
Change = Callable[..., DataSettings]
SEEDS = Seeds(5)
SIZES = [(64, 64), (70, 64), (200, 100), (100, 200), (64, 64), (130, 100), (64, 65)]


@pytest.fixture
def settings(paint: Painter, tmp_path: Path) -> Change:
    """Writes seven pictures of several shapes; gives settings with changes."""
    for number, size in enumerate(SIZES):
        paint(f"{number}.png", size=size, shade=number, caption=f"cat, number {number}, sitting")

    def make(**changes: Any) -> DataSettings:
        source = {"kind": "folder", "path": tmp_path / "pictures", **changes.pop("source", {})}
        cache = {"folder": tmp_path / "cache", **changes.pop("cache", {})}
        return DataSettings.model_validate({"sources": [source], "resolution": 64, "cache": cache, **changes})

    return make


@pytest.fixture
def from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filling begins with the first picture, not anywhere."""

    def first(_count: int) -> int:
        return 0

    monkeypatch.setattr(filling.secrets, "randbelow", first)


@pytest.fixture
def a_shard_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_SHARD_SECONDS", 0.0)


def accepted(settings: DataSettings) -> ExampleTable:
    return scan(settings.parts, settings.limits).accepted


def needs(settings: DataSettings, encoders: Any) -> Needs:
    return Needs(examples=accepted(settings), settings=settings, encoders=encoders.both, seeds=SEEDS)


def fill(settings: DataSettings, encoders: Encoders, share: Share | None = None) -> CacheReport:
    return fill_cache(accepted(settings), settings, encoders, SEEDS, share=share)


def entries(settings: DataSettings, identity: str) -> dict[str, dict[str, Tensor]]:
    """All that is in a cache."""
    cache = TensorCache(settings.cache.folder, identity)
    found = {key: cache.read(key) for key in cache.keys()}  # noqa: SIM118  it is no mapping
    return {key: entry for key, entry in found.items() if entry is not None}


def same(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].keys() == other[key].keys() and all(torch.equal(one[key][n], other[key][n]) for n in one[key])
        for key in one
    )


def small_encoders(small_model: Path) -> Encoders:
    from trainer.core.device import Precision
    from trainer.families.sd1 import Sd1

    return Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu")).encoders()


def test_a_picture_is_decoded_once_for_all_its_cuts(
    settings: Change, encoders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    picture = OpenSources.picture

    def counting(self: OpenSources, example: Any, *rest: Any) -> Picture:
        decoded.append(example.name)
        return picture(self, example, *rest)

    monkeypatch.setattr(OpenSources, "picture", counting)
    report = fill(settings(flip=True, crops={"places": 3}), encoders.both)
    assert sorted(decoded) == [f"{number}.png" for number in range(7)]
    assert report.encoded_pictures == len(entries(settings(), "pictures-1")) > 2 * 7


def test_batches_of_a_bucket_have_one_size(settings: Change, encoders: Any, from_the_start: None) -> None:
    fill(settings(), encoders.both)
    assert {shape[0] for shape in encoders.pictures} == {16}
    assert len(encoders.pictures) == len({shape[2:] for shape in encoders.pictures}) > 2


def test_an_entry_does_not_depend_on_what_else_was_missing(settings: Change, small_model: Path, tmp_path: Path) -> None:
    encoders = small_encoders(small_model)
    at_once, one_by_one = (settings(flip=True, cache={"folder": tmp_path / name}) for name in ("a", "b"))
    fill(at_once, encoders)
    examples = accepted(one_by_one)
    for count in range(1, len(examples) + 1):
        fill_cache(examples[:count], one_by_one, encoders, SEEDS)
    for identity in (encoders.pictures_identity, encoders.words_identity):
        assert len(entries(at_once, identity)) >= 7
        assert same(entries(at_once, identity), entries(one_by_one, identity))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shares_are_whole_and_overlap_nowhere(
    settings: Change, encoders: Any, world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_MOST_AT_ONCE", 2)
    alone, shared = (settings(flip=True, cache={"folder": tmp_path / name}) for name in ("alone", "shared"))
    whole = fill(alone, encoders.both)
    # One after the other: a process that comes late finds other things missing, and must not take another part for it.
    reports = [fill(shared, encoders.both, Share(rank, world)) for rank in range(world)]
    assert sum(report.encoded_pictures for report in reports) == whole.encoded_pictures
    assert sum(report.encoded_captions for report in reports) == whole.encoded_captions
    assert not any(report.reused_pictures or report.reused_captions for report in reports)
    assert sum(report.encoded_pictures > 0 for report in reports) > 1
    for identity in ("pictures-1", "words-1"):
        assert same(entries(alone, identity), entries(shared, identity))


def test_equal_pictures_are_encoded_once(settings: Change, encoders: Any, paint: Painter) -> None:
    paint("again/0.png", size=SIZES[0], shade=0, caption="other words")
    report = fill(settings(), encoders.both)
    assert (report.encoded_pictures, report.reused_pictures, report.encoded_captions) == (7, 0, 8)


def test_an_equal_picture_of_another_source_gets_only_what_is_new(
    settings: Change, encoders: Any, paint: Painter, tmp_path: Path
) -> None:
    copy = paint("../copies/0.png", size=SIZES[2], shade=2).parent
    plain = {"kind": "folder", "path": tmp_path / "pictures"}
    both = settings(sources=[plain, {"kind": "folder", "path": copy, "flip": True}])
    report = fill(both, encoders.both)
    assert report.encoded_pictures == 8
    assert len(entries(both, "pictures-1")) == 8
    assert fill(both, encoders.both).reused_pictures == 8


def test_what_another_process_encodes_meanwhile_is_not_encoded_again(
    settings: Change, encoders: Any, from_the_start: None, a_shard_each: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_MOST_AT_ONCE", 1)
    monkeypatch.setattr(decode_ahead, "worker_threads", lambda: 1)
    monkeypatch.setattr(decode_ahead, "_WORKS_AHEAD", 1)
    monkeypatch.setattr(gathering, "_MOST_WAITING", 0)
    monkeypatch.setattr("trainer.data.planning._TURN", 1)
    there = False

    def encode(pixels: Tensor) -> Posterior:
        nonlocal there
        if not there:
            there = True
            fill(settings(), encoders.both)  # the other one
        return encoders.encode_pictures(pixels)

    report = fill(settings(), replace(encoders.both, encode_pictures=encode))
    assert 1 <= report.encoded_pictures <= 5  # those that were decoded ahead before anything was written
    assert report.encoded_pictures + report.reused_pictures == 7


def masked(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """A picture that is opaque inside `box` alone."""
    alpha = Image.new("L", size, 0)
    alpha.paste(255, box)
    picture = Image.new("RGB", size, (10, 20, 30))
    picture.putalpha(alpha)
    path.parent.mkdir(exist_ok=True)
    picture.save(path)


def test_a_mask_is_cut_and_mirrored_with_its_picture(settings: Change, encoders: Any, tmp_path: Path) -> None:
    masked(tmp_path / "masked/left.png", (64, 64), (0, 0, 32, 64))
    own = settings(source={"path": tmp_path / "masked", "masks": "alpha"}, flip=True)
    fill(own, encoders.both)
    halves = sorted(entry["mask"][0, 0].tolist() for entry in entries(own, "pictures-1").values())
    assert halves == [[0.0] * 8 + [1.0] * 8, [1.0] * 8 + [0.0] * 8]
    assert all(entry["mask"].shape == (1, 16, 16) for entry in entries(own, "pictures-1").values())


def test_a_mask_that_the_crop_takes_away_is_refused(settings: Change, encoders: Any, tmp_path: Path) -> None:
    masked(tmp_path / "masked/rim.png", (640, 64), (0, 0, 8, 64))
    own = settings(source={"path": tmp_path / "masked", "masks": "alpha"}, buckets={"max_aspect": 1})
    with pytest.raises(DataError, match="Nothing of this picture's mask is left") as error:
        fill(own, encoders.both)
    assert "rim.png" in str(error.value.where)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_number_format_is_the_recipe_s(settings: Change, encoders: Any, dtype: str) -> None:
    fill(settings(cache={"dtype": dtype}), encoders.both)
    stored = {"float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
    for entry in entries(settings(), "pictures-1").values():
        assert torch.equal(entry["mean"], entry["mean"].to(stored).float())
    assert fill(settings(cache={"dtype": dtype}), encoders.both).encoded_pictures == 0
    other = {"float16": "bfloat16", "bfloat16": "float16"}[dtype]
    assert fill(settings(cache={"dtype": other}), encoders.both).encoded_pictures == 7


def test_what_float16_cannot_hold_is_refused_and_bfloat16_holds_it(settings: Change, encoders: Any) -> None:
    def large(pixels: Tensor) -> Posterior:
        small = encoders.encode_pictures(pixels)
        return Posterior(mean=small.mean.abs() + 1e5, deviation=small.deviation)

    with pytest.raises(NonFiniteError, match="beyond what the cache can hold"):
        fill(settings(), replace(encoders.both, encode_pictures=large))
    assert fill(settings(cache={"dtype": "bfloat16"}), replace(encoders.both, encode_pictures=large)).encoded_pictures


def test_numbers_that_are_not_finite_are_named_and_the_sound_ones_kept(
    settings: Change, encoders: Any, from_the_start: None, paint: Painter, a_shard_each: None
) -> None:
    shown: list[float] = []

    def spoiled(pixels: Tensor) -> Posterior:
        small = encoders.encode_pictures(pixels)
        shown.extend(pixels[:, 0, 0, 0].tolist())
        bad = pixels[:, 0, 0, 0] == float(torch.tensor(5) / 127.5 - 1)  # of 5.png
        return Posterior(mean=torch.where(bad[:, None, None, None], torch.nan, small.mean), deviation=small.deviation)

    with pytest.raises(NonFiniteError, match="not finite") as error:
        fill(settings(), replace(encoders.both, encode_pictures=spoiled))
    assert "5.png" in str(error.value.where)
    kept = entries(settings(), "pictures-1")
    assert all(torch.isfinite(tensor).all() for entry in kept.values() for tensor in entry.values())


def test_text_states_that_are_not_finite_are_named(settings: Change, encoders: Any) -> None:
    def spoiled(captions: Sequence[str]) -> Any:
        words = encoders.encode_words(captions)
        return replace(words, tokens=words.tokens * float("inf"))

    with pytest.raises(NonFiniteError, match="text encoder") as error:
        fill(settings(), replace(encoders.both, encode_words=spoiled))
    assert "the caption 'cat, number" in str(error.value.where)


def many(paint: Painter, count: int) -> None:
    for number in range(count):
        paint(f"many/{number:03}.png", shade=number, caption="many")


def test_an_error_ends_the_work_at_once_and_what_was_done_is_kept(
    settings: Change, encoders: Any, paint: Painter, tmp_path: Path, from_the_start: None
) -> None:
    many(paint, 200)
    own = settings(source={"path": tmp_path / "pictures/many"})
    examples = accepted(own)
    paint("many/040.png", shade=250)  # changed since it was looked at
    with pytest.raises(DataError, match="changed") as error:
        fill_cache(examples, own, encoders.both, SEEDS)
    assert "040.png" in str(error.value.where)
    assert len(encoders.pictures) <= 3  # of 13 batches
    before = len(entries(own, "pictures-1"))
    assert before == 16 * len(encoders.pictures)
    report = fill(own, encoders.both)
    assert (report.encoded_pictures, report.reused_pictures) == (200 - before, before)


def test_a_full_disk_ends_the_work_with_its_own_message(
    settings: Change, encoders: Any, paint: Painter, a_shard_each: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(paint, 250)

    def full(*_: object) -> None:
        raise TrainerError("The cache cannot be written: No space left on device.")

    monkeypatch.setattr(TensorCache, "write_contents", full)
    with pytest.raises(TrainerError, match="No space left"):
        fill(settings(), encoders.both)
    assert len(encoders.pictures) <= 8  # of about 20 batches


def test_an_interruption_keeps_what_was_encoded_and_leaves_nothing_partial(
    settings: Change, encoders: Any, paint: Painter
) -> None:
    many(paint, 100)

    def interrupted(pixels: Tensor) -> Posterior:
        if len(encoders.pictures) == 3:
            raise KeyboardInterrupt
        return encoders.encode_pictures(pixels)

    with pytest.raises(KeyboardInterrupt):
        fill(settings(), replace(encoders.both, encode_pictures=interrupted))
    kept = len(entries(settings(), "pictures-1"))
    assert 3 <= kept <= 48
    assert not list(settings().cache.folder.rglob("*.tmp"))
    assert fill(settings(), encoders.both).reused_pictures == kept


def damage(folder: Path) -> None:
    """Turn a byte in the middle of each shard."""
    for shard in folder.glob("*/shard-*.arrow"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 255
        shard.write_bytes(content)


def test_damaged_entries_are_made_again_with_a_warning(
    settings: Change, encoders: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fill(settings(), encoders.both)
    before = entries(settings(), "pictures-1")
    damage(settings().cache.folder)
    with caplog.at_level(logging.WARNING):
        assert 1 <= fill(settings(), encoders.both).encoded_pictures <= 7
    assert "cache" in caplog.text
    assert same(before, entries(settings(), "pictures-1"))


def test_a_single_entry_can_be_made_again(settings: Change, encoders: Any) -> None:
    fill(settings(), encoders.both)
    before = entries(settings(), "pictures-1")
    plan = Needs(examples=accepted(settings()), settings=settings(), encoders=encoders.both, seeds=SEEDS).plan(Share())
    work = next(iter(plan.works(np.arange(1), lambda keys: [False] * len(keys))))
    reader = TensorCache(settings().cache.folder, "pictures-1")
    damage(settings().cache.folder)
    encode_again(settings(), encoders.both, pictures=[work])
    reader.refresh()
    found = reader.read(work.keys[0])
    assert found is not None
    assert torch.equal(found["mean"], before[work.keys[0]]["mean"])


def test_a_huge_cache_is_not_read_through_at_each_start(
    settings: Change, encoders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings(), encoders.both)
    read: list[str] = []
    holds = TensorCache.holds

    def counting(self: TensorCache, key: str) -> bool:
        read.append(key)
        return holds(self, key)

    monkeypatch.setattr(TensorCache, "holds", counting)
    assert fill(settings(), encoders.both).reused_pictures == 7
    assert len(read) == 14
    read.clear()
    monkeypatch.setattr(filling, "_BYTES_CHECKED", 1000)
    assert fill(settings(), encoders.both).reused_pictures == 7
    assert len(read) < 7


def test_a_full_cache_needs_no_encoder(settings: Change, encoders: Any) -> None:
    fill(settings(), encoders.both)

    def never(*_: object) -> Any:
        raise AssertionError("an encoder was asked")

    assert fill(settings(), replace(encoders.both, encode_pictures=never, encode_words=never)).reused_pictures == 7


def test_needed_keys_are_those_that_a_filling_writes(settings: Change, encoders: Any) -> None:
    rich = settings(flip=True, captions={"dropout": 0.1, "shuffle_tags": True})
    fill(rich, encoders.both)
    needed = needed_keys(needs(rich, encoders))
    assert needed == {name: set(entries(rich, name)) for name in ("pictures-1", "words-1")}
    fewer = needed_keys(needs(settings(), encoders))
    assert fewer["pictures-1"] < needed["pictures-1"]


def test_a_run_that_encodes_its_words_itself_asks_for_none(settings: Change, encoders: Any) -> None:
    report = fill_cache(accepted(settings()), settings(), encoders.both, SEEDS, words=False)
    assert (report.encoded_pictures, report.encoded_captions, report.reused_captions) == (7, 0, 0)
    assert not encoders.words
    without = needed_keys(replace(needs(settings(), encoders), words=False))
    assert without == needed_keys(needs(settings(), encoders)) | {"words-1": set()}


def test_progress_speaks_of_what_is_to_be_done(settings: Change, encoders: Any) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    fill_cache(accepted(settings()), settings(), encoders.both, SEEDS, progress=tell)
    for title in ("checking the cache", "encoding pictures", "encoding captions"):
        counts = [(done, total) for what, done, total in told if what == title]
        assert counts[-1] == (7, 7)
        assert counts == sorted(counts)


def test_what_waits_for_the_encoder_is_bounded(
    settings: Change, encoders: Any, paint: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(paint, 120)
    own = settings(source={"path": tmp_path / "pictures/many"})
    monkeypatch.setattr(decode_ahead, "_BYTES_AHEAD", 1)  # so little that one picture is decoded after the other
    started: list[int] = []
    decode = Decoder.__call__

    def counting(self: Decoder, work: PictureWork) -> Any:
        started.append(len(encoders.pictures))
        return decode(self, work)

    monkeypatch.setattr(Decoder, "__call__", counting)
    assert fill(own, encoders.both).encoded_pictures == 120
    # When a picture is begun, all before it are encoded, apart from those of its batch.
    assert all(position - 17 <= 16 * done for position, done in enumerate(started))


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are decoded in processes, however few they are."""
    monkeypatch.setattr(filling, "_FEWEST_FOR_PROCESSES", 1)
    monkeypatch.setattr(decode_ahead, "worker_threads", lambda: 3)
    monkeypatch.setattr(decode_ahead, "_WORKS_A_TASK", 2)
    submit = ProcessPoolExecutor.submit

    def patiently(self: ProcessPoolExecutor, function: Any, *given: Any) -> Any:
        future = submit(self, function, *given)
        if given == ((),):  # which asks whether a process has started; until then there would be threads
            future.result(timeout=120)
        return future

    monkeypatch.setattr(ProcessPoolExecutor, "submit", patiently)


def decoding_processes() -> list[psutil.Process]:
    """Those that this one has started."""
    return [child for child in psutil.Process().children(recursive=True) if "popen_loky" in " ".join(child.cmdline())]


def test_processes_decode_what_threads_decode(
    settings: Change, encoders: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    masked(tmp_path / "pictures/left.png", (64, 64), (0, 0, 32, 64))
    threads = settings(source={"masks": "alpha"}, flip=True, cache={"folder": tmp_path / "threads"})
    fill(threads, encoders.both)
    request.getfixturevalue("in_processes")
    processes = settings(source={"masks": "alpha"}, flip=True, cache={"folder": tmp_path / "processes"})
    report = fill(processes, encoders.both)
    assert report.encoded_pictures == 16
    assert same(entries(threads, "pictures-1"), entries(processes, "pictures-1"))


def test_an_error_in_a_process_is_the_message_that_a_thread_gives(
    settings: Change, encoders: Any, in_processes: None, tmp_path: Path
) -> None:
    examples = accepted(settings())
    (tmp_path / "pictures/4.png").write_bytes((tmp_path / "pictures/3.png").read_bytes())
    with pytest.raises(DataError, match="was changed while the run") as caught:
        fill_cache(examples, settings(), encoders.both, SEEDS)
    assert caught.value.where is not None
    assert caught.value.where.endswith("4.png")
    assert caught.value.mend == "Start again; leave it alone then."
    assert not decoding_processes()


def test_a_killed_process_is_told(settings: Change, encoders: Any, in_processes: None) -> None:
    needs = Needs(examples=accepted(settings()), settings=settings(), encoders=encoders.both, seeds=SEEDS)
    works = list(needs.plan(Share()).works(np.arange(7), lambda keys: [False] * len(keys)))
    ahead = decode_ahead.decode_ahead(needs.encoding.decoder, works * 50, processes=True)
    next(ahead)
    assert decoding_processes()
    for child in decoding_processes():
        child.kill()
    with pytest.raises(TrainerError, match="decodes pictures was killed"):
        list(ahead)


def test_a_process_killed_while_it_tells_its_result_is_told(
    settings: Change, encoders: Any, in_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a message lies in the pipe then, and the pool would wait for its rest for ever."""
    pools: list[Any] = []  # loky types nothing
    begin = ProcessPoolExecutor.__init__

    def noticed(self: ProcessPoolExecutor, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        pools.append(self)

    monkeypatch.setattr(ProcessPoolExecutor, "__init__", noticed)
    monkeypatch.setattr(decode_ahead, "_PATIENCE", 0.2)
    needs = Needs(examples=accepted(settings()), settings=settings(), encoders=encoders.both, seeds=SEEDS)
    works = list(needs.plan(Share()).works(np.arange(7), lambda keys: [False] * len(keys)))
    ahead = decode_ahead.decode_ahead(needs.encoding.decoder, works * 500, processes=True)
    next(ahead)
    for child in decoding_processes():
        child.suspend()
    os.write(pools[0]._result_queue._writer.fileno(), struct.pack("!i", 1 << 20) + b"half of a result")
    for child in decoding_processes():
        child.kill()
    with pytest.raises(TrainerError, match="decodes pictures was killed"):
        list(ahead)
