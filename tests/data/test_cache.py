"""What is in the cache is whole and its own, or it is not there."""

import hashlib
import logging
from pathlib import Path

import pytest
import torch

from trainer.core.errors import TrainerError
from trainer.data.cache import CacheDtype, TensorCache, cache_key
from trainer.data.shards import ShardStore


def key(number: int) -> str:
    return cache_key("entry", number)


def entry(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {"mean": torch.randn(4, 8, 6, generator=generator), "deviation": torch.rand(4, 8, 6, generator=generator)}


def filled(root: Path, numbers: range) -> TensorCache:
    cache = TensorCache(root, "encoder")
    cache.write({key(number): entry(number) for number in numbers})
    return cache


def same(found: dict[str, torch.Tensor] | None, number: int, kept: torch.dtype = torch.float16) -> bool:
    """Whether the entry is what was written, as 16 bits keep it."""
    expected = entry(number)
    assert found is not None
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    return found.keys() == expected.keys() and all(
        torch.equal(found[k], expected[k].to(kept).float()) for k in expected
    )


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_what_is_written_is_read_again(tmp_path: Path, memory: int) -> None:
    filled(tmp_path, range(3))
    filled(tmp_path, range(3, 5)).save_index()
    cache = TensorCache(tmp_path, "encoder", memory)
    for _ in range(2):
        assert all(same(cache.read(key(number)), number) for number in range(5))
    assert cache.read(key(9)) is None
    assert not cache.holds(key(9))
    assert key(4) in cache
    assert cache.known([key(9), key(4)]).tolist() == [False, True]
    assert len(cache) == 5
    assert cache.bytes == sum(file.stat().st_size for file in cache.folder.glob("*.arrow"))
    assert cache.keys() == sorted(map(key, range(5)))


def test_each_row_says_its_number_format(tmp_path: Path) -> None:
    """One folder may hold both; what is written last does not change how what was there is read."""
    formats: dict[CacheDtype, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    for number, dtype in enumerate(formats):
        TensorCache(tmp_path, "encoder", dtype=dtype).write({key(number): entry(number)})
    for dtype in formats:
        cache = TensorCache(tmp_path, "encoder", dtype=dtype)
        for number, kept in enumerate(formats.values()):
            assert same(cache.read(key(number)), number, kept)


def test_a_mask_is_kept_exactly_enough_in_either_format(tmp_path: Path) -> None:
    mask = torch.rand(1, 8, 6)
    cache = TensorCache(tmp_path, "encoder", dtype="bfloat16")
    cache.write({key(0): {**entry(0), "mask": mask}})
    found = cache.read(key(0))
    assert found is not None
    assert torch.equal(found["mask"], mask.half().float())
    assert torch.equal(found["mean"], entry(0)["mean"].bfloat16().float())


def test_any_shape_and_any_number_survives(tmp_path: Path) -> None:
    """Slices of a batch, other strides, single numbers, nothing, more numbers than are converted at once."""
    written = {
        "slice": torch.randn(3, 4, 5)[1],
        "turned": torch.randn(4, 5).T,
        "channels last": torch.randn(1, 4, 5, 6).to(memory_format=torch.channels_last),
        "single": torch.tensor(0.5),
        "nothing": torch.zeros(0, 3),
        "large": torch.randn(77, 2048),
        "extreme": torch.tensor([0.0, -0.0, 65504.0, -65504.0, 6e-8, float("inf")]),
        "half": torch.randn(7).half(),
        "bfloat": torch.randn(7).bfloat16(),
    }
    formats: dict[CacheDtype, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    for dtype, kept in formats.items():
        cache = TensorCache(tmp_path / dtype, "encoder", dtype=dtype)
        cache.write({key(0): written})
        found = TensorCache(tmp_path / dtype, "encoder").read(key(0))
        assert found is not None
        assert found.keys() == written.keys()
        for name, tensor in written.items():
            assert torch.equal(found[name], tensor.to(kept).float()), name


def test_what_is_stored_is_in_memory_of_its_own(tmp_path: Path) -> None:
    """A part of a batch would hold the whole batch."""
    batch = torch.randn(8, 4, 4).half()
    stored = TensorCache(tmp_path, "encoder").as_stored({"mean": batch[2]})["mean"]
    assert stored.untyped_storage().nbytes() == 2 * 4 * 4
    assert torch.equal(stored, batch[2])


def test_what_is_read_can_be_changed_without_harm(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, "encoder", memory=1 << 20)
    cache.write({key(0): entry(0)})
    first = cache.read(key(0))
    assert first is not None
    first["mean"].zero_()
    assert same(cache.read(key(0)), 0)


def test_memory_keeps_no_more_than_it_may(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(4))
    kept = TensorCache(tmp_path, "encoder", memory=2 * 2 * 4 * 8 * 6 * 2)  # two entries
    for number in range(4):
        kept.read(key(number))
    for shard in cache.folder.glob("shard-*"):
        shard.unlink()
    assert [kept.read(key(number)) is not None for number in range(4)] == [True, True, False, False]


def test_two_encoders_never_meet(tmp_path: Path) -> None:
    filled(tmp_path, range(1))
    assert TensorCache(tmp_path, "another").read(key(0)) is None


def test_another_process_s_shards_are_seen_after_a_refresh(tmp_path: Path) -> None:
    mine, other = TensorCache(tmp_path, "encoder"), TensorCache(tmp_path, "encoder")
    mine.write({key(0): entry(0)})
    other.write({key(0): entry(0), key(1): entry(1)})
    assert key(1) not in mine
    mine.refresh()
    assert same(mine.read(key(0)), 0)
    assert same(mine.read(key(1)), 1)


def test_every_part_of_a_key_counts() -> None:
    keys = [cache_key("a", 1), cache_key("a", "1"), cache_key("a1"), cache_key("a", 1, True), cache_key("a", 1, False)]
    assert len(set(keys)) == len(keys)


def test_equal_entries_give_equal_bytes(tmp_path: Path) -> None:
    digests: set[str] = set()
    for name in ("a", "b"):
        cache = filled(tmp_path / name, range(3))
        (shard,) = cache.folder.glob("shard-*.arrow")
        digests.add(hashlib.sha256(shard.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_damaged_entry_is_made_again_and_then_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shard,) = filled(tmp_path, range(2)).folder.glob("shard-*.arrow")
    numbers = entry(1)["mean"].half().numpy().tobytes()
    content = bytearray(shard.read_bytes())
    content[content.index(numbers) + 5] ^= 64
    shard.write_bytes(content)
    cache = TensorCache(tmp_path, "encoder")
    with caplog.at_level(logging.WARNING):
        assert cache.holds(key(0))
        assert not cache.holds(key(1))
    assert "Damaged rows" in caplog.text
    cache.write({key(1): entry(1)})
    for opened in (cache, TensorCache(tmp_path, "encoder")):
        assert same(opened.read(key(0)), 0)
        assert same(opened.read(key(1)), 1)


def test_a_row_that_holds_no_tensors_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such as a verdict on a picture; its checksum is right."""
    cache = filled(tmp_path, range(1))
    store = ShardStore(cache.folder)
    for number, content in enumerate([b"", b"[1, 2]", b"\xff" * 40], start=1):
        store.write({key(number): content})
    cache.refresh()
    assert [cache.read(key(number)) is None for number in range(4)] == [False, True, True, True]
    assert "holds no tensors" in caplog.text


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(TrainerError, match="cannot be"):
        TensorCache(tmp_path / "cache", "encoder")
