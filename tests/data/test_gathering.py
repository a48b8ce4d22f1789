"""What is gathered behind the encoder: it outlives a kill at once, and comes into shards that are always the same."""

import errno
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.core.errors import NonFiniteError, TrainerError
from trainer.data.cache import CacheDtype, TensorCache, cache_key
from trainer.data.gathering import Encoded, Gatherer
from trainer.data.journal import rows_of
from trainer.data.shard_files import read_rows
from trainer.data.shards import ShardStore
from trainer.data.shared_store import Shared

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def batch(number: int, *, dtype: CacheDtype = "float16", masked: bool = False, size: int = 3) -> Encoded:
    generator = torch.Generator().manual_seed(number)
    keys = [cache_key("batch", number, row) for row in range(size)]
    states = {name: torch.randn(size, 4, 6, 5, generator=generator) for name in ("mean", "deviation")}
    masks = [torch.rand(1, 6, 5, generator=generator) if row == 1 else None for row in range(size)]
    return Encoded(
        encoder="The autoencoder",
        keys=keys,
        places=keys,
        # As a network gives it that likes another order of numbers in memory.
        states={n: one.to(DTYPES[dtype]).to(memory_format=torch.channels_last) for n, one in states.items()},
        finite=torch.ones(size, dtype=torch.bool),
        masks=masks if masked else (),
    )


def entries(encoded: Encoded) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for row, key in enumerate(encoded.keys):
        found[key] = {name: state[row] for name, state in encoded.states.items()}
        mask = encoded.masks[row] if encoded.masks else None
        if mask is not None:
            found[key]["mask"] = mask
    return found


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob(".journal*"))


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_shard_has_the_same_bytes_however_its_entries_came(tmp_path: Path, dtype: CacheDtype, masked: bool) -> None:
    batches = [batch(number, dtype=dtype, masked=masked) for number in range(4)]
    gathered, killed, plain = (TensorCache(tmp_path / name, "p", dtype=dtype) for name in ("a", "b", "c"))
    with Gatherer(gathered) as gatherer:
        for one in batches:
            gatherer.add(one)
    plain.write({key: entry for one in batches for key, entry in entries(one).items()})
    journal = killed.journal()
    for one in batches:
        journal.append({key: killed.content_of(entry) for key, entry in entries(one).items()})
    journal.leave()
    killed.take_up_journals()
    shards = [list(cache.folder.glob("shard-*.arrow")) for cache in (gathered, killed, plain)]
    assert [len(files) for files in shards] == [1, 1, 1]
    first, second, third = (files[0].read_bytes() for files in shards)
    assert first == second == third


def test_a_batch_outlives_a_kill_when_it_is_taken(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, "p")
    with Gatherer(cache) as gatherer:
        for number in range(3):
            gatherer.add(batch(number))
            (path,) = cache.folder.glob(".journal-*.rows")
            kept = [key for key, _ in rows_of(path)]
            assert kept == [key for n in range(number + 1) for key in batch(n).keys]
    assert not journals(cache.folder)
    assert len(TensorCache(tmp_path, "p")) == 9


def test_what_is_sound_before_numbers_that_are_not_finite_is_kept(tmp_path: Path) -> None:
    spoiled = batch(1)._replace(finite=torch.tensor([True, False, True]))
    cache = TensorCache(tmp_path, "p")
    with pytest.raises(NonFiniteError, match="not finite") as error, Gatherer(cache) as gatherer:
        gatherer.add(batch(0))
        gatherer.add(spoiled)
    assert error.value.where == spoiled.keys[1]
    assert set(TensorCache(tmp_path, "p").keys()) == {*batch(0).keys, spoiled.keys[0]}
    assert not journals(cache.folder)


class Failing:
    """Takes the place of a store's writing: it fails a few times."""

    def __init__(self, folder: Path, number: int, times: int) -> None:
        self.left, self.number, self.folder = times, number, folder
        self.journals: list[int] = []  # how many there were at each call
        self.write = ShardStore.write

    def __call__(self, store: ShardStore, contents: Mapping[str, Any]) -> None:
        self.journals.append(len(journals(self.folder)))
        if self.left:
            self.left -= 1
            error = TrainerError("The cache cannot be written.")
            raise error from OSError(self.number, "of the system")
        self.write(store, contents)


def patched(monkeypatch: pytest.MonkeyPatch, failing: Failing) -> Failing:
    monkeypatch.setattr(ShardStore, "write", lambda store, contents: failing(store, contents))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    return failing


def test_on_a_full_disk_the_journal_gives_its_room_to_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path, "p")
    failing = patched(monkeypatch, Failing(cache.folder, errno.ENOSPC, times=1))
    with Gatherer(cache) as gatherer:
        gatherer.add(batch(0))
    assert failing.journals == [2, 0]
    assert len(TensorCache(tmp_path, "p")) == 3


def test_a_disk_that_stays_full_ends_the_work_with_its_own_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path, "p")
    patched(monkeypatch, Failing(cache.folder, errno.ENOSPC, times=2))
    with pytest.raises(TrainerError, match="cannot be written"), Gatherer(cache) as gatherer:
        gatherer.add(batch(0))
    assert not journals(cache.folder)


def test_what_could_not_be_written_is_taken_up_by_the_next_filling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path, "p")
    with monkeypatch.context() as context:
        patched(context, Failing(cache.folder, errno.EIO, times=1))
        with pytest.raises(TrainerError, match="cannot be written"), Gatherer(cache) as gatherer:
            gatherer.add(batch(0))
    again = TensorCache(tmp_path, "p")
    again.take_up_journals()
    assert set(again.keys()) == set(batch(0).keys)
    assert not journals(cache.folder)


def test_what_lies_in_a_shard_already_is_not_written_again(tmp_path: Path) -> None:
    """A process that was killed right before it removed its journal."""
    cache = TensorCache(tmp_path, "p")
    contents = {key: cache.content_of(entry) for key, entry in entries(batch(0)).items()}
    journal = cache.journal()
    journal.append(contents)
    cache.write_contents(dict(islice(contents.items(), 2)))
    journal.leave()
    again = TensorCache(tmp_path, "p")
    again.take_up_journals()
    assert set(TensorCache(tmp_path, "p").keys()) == set(contents)
    rows = sorted(len(read_rows(path)) for path in cache.folder.glob("shard-*.arrow"))
    assert rows == [1, 2]


def test_entries_for_an_address_are_kept_on_this_machine_until_they_are_there(tmp_path: Path) -> None:
    shared = Shared("memory://journals/sd", 1_000_000)
    cache = TensorCache(tmp_path / "one", "p", shared=shared)
    journal = cache.journal()
    journal.append({key: cache.content_of(entry) for key, entry in entries(batch(0)).items()})
    journal.leave()
    assert len(TensorCache(tmp_path / "two", "p", shared=shared)) == 0
    TensorCache(tmp_path / "one", "p", shared=shared).take_up_journals()
    other = TensorCache(tmp_path / "two", "p", shared=shared)
    assert set(other.keys()) == set(batch(0).keys)
    assert other.read(batch(0).keys[0]) is not None
    assert not journals(cache.folder)
