"""What is in the cache is whole and its own, or it is not there."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.core.errors import TrainerError
from trainer.data.cache import TensorCache, cache_key


def entry(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {"mean": torch.randn(4, 8, 6, generator=generator), "deviation": torch.rand(4, 8, 6, generator=generator)}


def filled(root: Path, numbers: range) -> TensorCache:
    cache = TensorCache(root, "encoder")
    cache.write({f"key-{number}": entry(number) for number in numbers})
    return cache


def same(found: dict[str, torch.Tensor] | None, number: int) -> bool:
    """Whether the entry is what was written, as float16 keeps it."""
    expected = entry(number)
    assert found is not None
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k].half().float()) for k in expected)


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_what_is_written_is_read_again(tmp_path: Path, memory: int) -> None:
    filled(tmp_path, range(3))
    filled(tmp_path, range(3, 5))
    cache = TensorCache(tmp_path, "encoder", memory)
    for _ in range(2):
        assert all(same(cache.read(f"key-{number}"), number) for number in range(5))
    assert cache.read("key-9") is None
    assert not cache.holds("key-9")
    assert len(cache) == 5


def test_what_is_read_can_be_changed_without_harm(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, "encoder", memory=1 << 20)
    cache.write({"key-0": entry(0)})
    first = cache.read("key-0")
    assert first is not None
    first["mean"].zero_()
    assert same(cache.read("key-0"), 0)


def test_two_encoders_never_meet(tmp_path: Path) -> None:
    filled(tmp_path, range(1))
    assert TensorCache(tmp_path, "another").read("key-0") is None


def test_another_process_s_shards_are_seen_after_a_refresh(tmp_path: Path) -> None:
    mine, other = TensorCache(tmp_path, "encoder"), TensorCache(tmp_path, "encoder")
    mine.write({"key-0": entry(0)})
    other.write({"key-0": entry(0), "key-1": entry(1)})
    assert "key-1" not in mine
    mine.refresh()
    assert same(mine.read("key-0"), 0)
    assert same(mine.read("key-1"), 1)


def test_every_part_of_a_key_counts() -> None:
    keys = [cache_key("a", 1), cache_key("a", "1"), cache_key("a1"), cache_key("a", 1, True), cache_key("a", 1, False)]
    assert len(set(keys)) == len(keys)


def shard_of(cache: TensorCache) -> Path:
    (shard,) = cache.folder.glob("shard-*.arrow")
    return shard


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99])
def test_a_shard_that_is_cut_short_is_made_again(tmp_path: Path, keep: float, caplog: pytest.LogCaptureFixture) -> None:
    shard = shard_of(filled(tmp_path, range(8)))
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * keep)])
    with caplog.at_level(logging.WARNING):
        cache = TensorCache(tmp_path, "encoder")
        sound = [number for number in range(8) if cache.holds(f"key-{number}")]
    assert len(sound) < 8
    assert all(same(cache.read(f"key-{number}"), number) for number in sound)
    assert not shard.exists()
    assert "damaged file" in caplog.text
    cache.write({f"key-{number}": entry(number) for number in range(8)})
    assert all(same(cache.read(f"key-{number}"), number) for number in range(8))


def test_a_foreign_file_under_our_name_is_not_used(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(2))
    (cache.folder / "shard-foreign.arrow").write_text("I am no Arrow file")
    from datasets.arrow_writer import ArrowWriter

    writer = ArrowWriter(path=str(cache.folder / "shard-other.arrow"))
    writer.write({"key": "key-7", "content": b"whatever"})
    writer.finalize()
    again = TensorCache(tmp_path, "encoder")
    assert len(again) == 2
    assert len(list(cache.folder.glob("*.arrow"))) == 1


def test_no_single_damaged_byte_is_used_silently(tmp_path: Path) -> None:
    shard = shard_of(filled(tmp_path, range(4)))
    content = shard.read_bytes()
    random = np.random.default_rng(0)
    places = {int(p) for p in random.integers(0, len(content), 80)} | {int(p) for p in random.integers(0, 1500, 60)}
    noticed = 0
    for place in sorted(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(0, 8))
        shard.write_bytes(damaged)
        cache = TensorCache(tmp_path, "encoder")
        for number in range(4):
            found = cache.read(f"key-{number}")
            noticed += found is None
            assert found is None or same(found, number), f"byte {place}"
    assert noticed > 20


def test_a_damaged_row_is_made_again_and_then_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = shard_of(filled(tmp_path, range(2)))
    numbers = entry(1)["mean"].half().numpy().tobytes()
    content = bytearray(shard.read_bytes())
    content[content.index(numbers) + 5] ^= 64
    shard.write_bytes(content)
    cache = TensorCache(tmp_path, "encoder")
    with caplog.at_level(logging.WARNING):
        assert cache.holds("key-0")
        assert not cache.holds("key-1")
    assert "damaged row" in caplog.text
    cache.write({"key-1": entry(1)})
    for opened in (cache, TensorCache(tmp_path, "encoder")):
        assert same(opened.read("key-1"), 1)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(TrainerError, match="cannot be written"):
        TensorCache(tmp_path / "cache", "encoder")
