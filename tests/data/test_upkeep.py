"""The cache is looked through, made sound and made smaller, and nothing that is needed is lost."""

import logging
from pathlib import Path

import pytest
import torch

from trainer.data.cache import TensorCache, cache_key
from trainer.data.shard_files import list_shards
from trainer.data.shards import ShardStore
from trainer.data.upkeep import facts_of, find_waste, prune, verify


def key(number: int) -> str:
    return cache_key("entry", number)


def filled(root: Path, identity: str, *shards: range) -> TensorCache:
    cache = TensorCache(root, identity)
    for numbers in shards:
        cache.write({key(number): {"mean": torch.full((9,), float(number))} for number in numbers})
    cache.save_index()
    return cache


def sound(root: Path, identity: str, numbers: range) -> list[int]:
    cache = TensorCache(root, identity)
    found = {number: cache.read(key(number)) for number in numbers}
    assert all(entry is None or entry["mean"].tolist() == [float(number)] * 9 for number, entry in found.items())
    return [number for number, entry in found.items() if entry is not None]


def verdicts(root: Path) -> ShardStore:
    store = ShardStore(root / "verdicts")
    store.write({key(number): b"{}" for number in range(3)})
    return store


class Told:
    """What a person would see of a long phase."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.said.append((what, done, total))


def damage(cache: TensorCache, number: int) -> None:
    numbers = torch.full((9,), float(number)).half().numpy().tobytes()
    for shard in cache.folder.glob("shard-*.arrow"):
        content = bytearray(shard.read_bytes())
        if numbers in content:
            content[content.index(numbers) + 3] ^= 1
            shard.write_bytes(content)
            return
    raise AssertionError("there is no such entry")


def test_what_the_folders_hold(tmp_path: Path) -> None:
    filled(tmp_path, "the\x1b[31mfirst", range(3), range(3, 7))
    filled(tmp_path, "second", range(2))
    verdicts(tmp_path)
    (tmp_path / "a person's folder").mkdir()
    (tmp_path / "a file").write_text("x")
    facts = {one.title: one for one in facts_of(tmp_path)}
    assert facts.keys() == {"the\\x1b[31mfirst", "second", "verdicts"}
    first = facts["the\\x1b[31mfirst"]
    assert (first.entries, first.shards) == (7, 2)
    assert first.bytes == sum(path.stat().st_size for path in Path(first.folder.title).glob("*.arrow"))
    assert facts_of(tmp_path / "absent") == []


def test_a_sound_cache_is_left_as_it_is(tmp_path: Path) -> None:
    cache = filled(tmp_path, "one", range(3), range(3, 7))
    before = {path.name: path.read_bytes() for path in cache.folder.glob("*.arrow")}
    told = Told()
    (health,) = verify(tmp_path, told)
    assert (health.title, health.rows, health.damaged_rows, health.damaged_files) == ("one", 7, 0, 0)
    assert {path.name: path.read_bytes() for path in cache.folder.glob("*.arrow")} == before
    assert told.said == [("comparing the cache", 1, 2), ("comparing the cache", 2, 2)]


@pytest.mark.parametrize("index", [True, False])
def test_damage_is_found_and_removed_and_the_rest_stays(
    tmp_path: Path, index: bool, caplog: pytest.LogCaptureFixture
) -> None:
    one = filled(tmp_path, "one", range(5), range(5, 10), range(10, 15))
    two = filled(tmp_path, "two", range(4))
    verdicts(tmp_path)
    damage(one, 2)
    damage(one, 7)
    (two.folder / "shard-foreign.arrow").write_text("I am no shard")
    (cut,) = list_shards(tmp_path / "verdicts")
    (tmp_path / "verdicts" / cut).write_bytes((tmp_path / "verdicts" / cut).read_bytes()[:-30])
    if not index:
        for file in tmp_path.glob("*/index.safetensors"):
            file.unlink()
    found = {health.title: health for health in verify(tmp_path, Told())}
    assert {title: (h.rows, h.damaged_rows, h.damaged_files) for title, h in found.items()} == {
        "one": (15, 2, 0),
        "two": (4, 0, 1),
        "verdicts": (0, 0, 1),
    }
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert sound(tmp_path, "one", range(15)) == [n for n in range(15) if n not in (2, 7)]
        assert sound(tmp_path, "two", range(4)) == [0, 1, 2, 3]
        assert all(not (h.damaged_rows or h.damaged_files) for h in verify(tmp_path, Told()))
    assert not caplog.records  # what was damaged is gone for good


def test_a_shard_without_a_sound_row_goes(tmp_path: Path) -> None:
    cache = filled(tmp_path, "one", range(3, 4))
    damage(cache, 3)
    (health,) = verify(tmp_path, Told())
    assert (health.rows, health.damaged_rows) == (1, 1)
    assert not list(cache.folder.glob("*.arrow"))


def test_what_is_needed_stays_and_the_rest_goes(tmp_path: Path) -> None:
    one = filled(tmp_path, "one", range(5), range(5, 10), range(10, 15))
    two = filled(tmp_path, "two", range(4))
    filled(tmp_path, "three", range(6))
    verdicts(tmp_path)
    whole = next(name for name in list_shards(one.folder) if key(5) in _keys(one.folder / name))
    needed = {"one": {key(n) for n in (3, 4, 5, 6, 7, 8, 9, 99)}, "three": {key(n) for n in range(6)}}
    found = {waste.title: waste for waste in find_waste(tmp_path, needed, Told())}
    assert {title: (w.kept_rows, w.wasted_rows) for title, w in found.items()} == {"one": (7, 8), "two": (0, 4)}
    assert found["two"].wasted_bytes > 4 * 18
    assert sound(tmp_path, "one", range(15)) == list(range(15))  # looking changes nothing
    told = Told()
    prune(list(found.values()), told)
    assert told.said[-1][1:] == (3, 3)  # the shard of which all is needed is not touched
    assert sound(tmp_path, "one", range(15)) == [3, 4, 5, 6, 7, 8, 9]
    assert whole in list_shards(one.folder)
    assert len(list_shards(one.folder)) == 2
    assert not two.folder.exists()
    assert sound(tmp_path, "three", range(6)) == list(range(6))
    assert len(ShardStore(tmp_path / "verdicts")) == 3
    assert not find_waste(tmp_path, needed, Told())


def test_damage_is_not_copied_while_pruning(tmp_path: Path) -> None:
    cache = filled(tmp_path, "one", range(5))
    damage(cache, 1)
    needed = {"one": {key(n) for n in range(3)}}
    prune(find_waste(tmp_path, needed, Told()), Told())
    assert sound(tmp_path, "one", range(5)) == [0, 2]
    (health,) = verify(tmp_path, Told())
    assert (health.rows, health.damaged_rows) == (2, 0)


def test_a_running_training_finds_what_was_moved(tmp_path: Path) -> None:
    """Pruning for two recipes, this one among them: its shard was rewritten under another name."""
    running = filled(tmp_path, "one", range(5), range(5, 10))
    prune(find_waste(tmp_path, {"one": {key(n) for n in (1, 6)}}, Told()), Told())
    for number in (1, 6):
        entry = running.read(key(number))
        assert entry is not None
        assert entry["mean"].tolist() == [float(number)] * 9


def test_a_folder_of_another_name_is_nobody_s_waste(tmp_path: Path) -> None:
    """A person's copy of a folder, which our identity names otherwise."""
    cache = filled(tmp_path, "one", range(3))
    cache.folder.rename(tmp_path / "backup")
    assert not find_waste(tmp_path, {}, Told())


def _keys(shard: Path) -> set[str]:
    from trainer.data.shard_files import read_rows

    return {row.tobytes().hex() for row in read_rows(shard).keys}
