"""What is put into a store is found again, by any number of readers and writers, within the machine's limits."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from trainer.core.errors import TrainerError
from trainer.data import shard_index
from trainer.data.shard_index import INDEX_NAME
from trainer.data.shards import ShardStore

ROWS, SHARDS = 6, 4


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def content(number: int) -> bytes:
    return hashlib.sha512(str(number).encode()).digest() * (1 + number % 5)


def entries(numbers: Iterable[int]) -> dict[str, bytes]:
    return {key(number): content(number) for number in numbers}


def filled(folder: Path, shards: int = SHARDS, *, index: bool = True) -> ShardStore:
    store = ShardStore(folder)
    for shard in range(shards):
        store.write(entries(range(shard * ROWS, shard * ROWS + ROWS)))
    if index:
        store.save_index()
    return store


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))


def sound(store: ShardStore, numbers: Iterable[int]) -> set[int]:
    """The numbers whose contents are there; what is there must be right."""
    found: set[int] = set()
    for number in numbers:
        got = store.get(key(number))
        assert got is None or got == content(number), number
        if got is not None:
            found.add(number)
    return found


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_what_is_written_is_found_again(tmp_path: Path, index: bool) -> None:
    filled(tmp_path, 40, index=index)
    store = ShardStore(tmp_path)
    everything = range(40 * ROWS)
    assert sound(store, everything) == set(everything)
    assert len(store) == len(everything)
    assert store.keys() == sorted(map(key, everything))
    assert store.get(key(-1)) is None
    assert key(3) in store
    assert key(-3) not in store
    wanted = [key(number) for number in range(-50, 300)]
    assert store.known(wanted).tolist() == [0 <= number < 240 for number in range(-50, 300)]
    assert len(store.known([])) == 0


def test_nothing_is_made_by_opening(tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "absent")
    assert len(store) == 0
    assert not store.known([key(0)])[0]
    store.write({})
    store.save_index()
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("wrong", ["", "ab", "g" * 64, "ab " * 21 + "a", "a" * 63, "a" * 65])
def test_a_key_is_64_hexadecimal_characters(tmp_path: Path, wrong: str) -> None:
    store = ShardStore(tmp_path)
    with pytest.raises(ValueError, match="hex"):
        store.get(wrong)
    with pytest.raises(ValueError, match="hex"):
        store.known([wrong])
    with pytest.raises(ValueError, match="hex"):
        store.write({wrong: b""})


def test_the_youngest_content_of_a_key_counts_and_an_older_one_steps_in_for_it(tmp_path: Path) -> None:
    """Two processes may have written the same key; when one of the two is damaged, the other is used."""
    store = ShardStore(tmp_path)
    store.write({key(0): b"old"})
    (old,) = shard_files(tmp_path)
    os.utime(old, ns=(1, 1))
    store.write({key(0): b"new", key(1): b"one"})
    for opened in (store, ShardStore(tmp_path)):
        assert opened.get(key(0)) == b"new"
        assert len(opened) == 2
    store.save_index()
    (new,) = set(shard_files(tmp_path)) - {old}
    new.write_bytes(new.read_bytes().replace(b"new", b"neu"))
    opened = ShardStore(tmp_path)
    assert opened.get(key(0)) == b"old"
    assert opened.get(key(1)) == b"one"


def test_keys_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    keys = [f"{'ab' * 8}{number:048x}" for number in (5, 3, 9, 1, 7, 2)]
    ShardStore(tmp_path).write({one: one.encode() for one in keys[:3]})
    store = ShardStore(tmp_path)
    store.write({one: one.encode() for one in keys[3:]})
    store.save_index()
    for opened in (store, ShardStore(tmp_path)):
        assert all(opened.get(one) == one.encode() for one in keys)
        assert opened.known([*keys, f"{'ab' * 8}{4:048x}"]).tolist() == [True] * 6 + [False]
        assert opened.keys() == sorted(keys)


def test_empty_and_large_contents(tmp_path: Path) -> None:
    large = os.urandom(3_000_000)
    ShardStore(tmp_path).write({key(0): b""})
    ShardStore(tmp_path).write({key(1): large, key(2): memoryview(b"view"), key(3): b""})
    store = ShardStore(tmp_path)
    assert [store.get(key(number)) for number in range(4)] == [b"", large, b"view", b""]


@pytest.mark.skipif(os.name == "nt", reason="rights are otherwise there")
def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    import resource

    store = filled(tmp_path, 1)
    before = sorted(file.name for file in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(TrainerError, match="cannot be written"):
            store.write({key(99): os.urandom(500_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    assert len(sound(store, range(ROWS))) == ROWS


def test_an_index_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 1, index=False)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shard_index, "replacing", full)
        store.save_index()
    assert "index of the cache cannot be written" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == [file.name for file in shard_files(tmp_path)]
    assert len(sound(store, range(ROWS))) == ROWS


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files where Linux lists them")
def test_neither_handles_nor_indices_grow(tmp_path: Path) -> None:
    store = filled(tmp_path, 120, index=False)
    handles = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert len(sound(store, range(120 * ROWS))) == 120 * ROWS
    opened = ShardStore(tmp_path)
    assert len(sound(opened, range(120 * ROWS))) == 120 * ROWS
    assert len(os.listdir("/proc/self/fd")) <= handles + 1  # noqa: PTH208
    assert (tmp_path / INDEX_NAME).is_file()  # a filling writes it a few times by itself


def test_the_index_is_not_written_where_nothing_changed(tmp_path: Path) -> None:
    filled(tmp_path)
    before = (tmp_path / INDEX_NAME).stat()
    store = ShardStore(tmp_path)
    sound(store, range(24))
    store.save_index()
    after = (tmp_path / INDEX_NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_a_killed_process_began_is_swept_away(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    old, fresh = tmp_path / ".shard-a.arrow.b.tmp", tmp_path / ".shard-c.arrow.d.tmp"
    for leftover in (old, fresh):
        leftover.write_bytes(b"half")
    os.utime(old, (1, 1))
    ShardStore(tmp_path)
    assert not old.exists()
    assert fresh.exists()  # another process may be at it


def test_another_store_s_shards_are_seen_after_a_refresh(tmp_path: Path) -> None:
    mine, other = ShardStore(tmp_path), ShardStore(tmp_path)
    other.write(entries([0]))
    assert key(0) not in mine
    mine.refresh()
    assert sound(mine, [0]) == {0}


def test_a_shard_that_another_process_wrote_anew_is_found(tmp_path: Path) -> None:
    mine = filled(tmp_path, 1)
    (path,) = shard_files(tmp_path)
    path.rename(path.with_name("shard-anew.arrow"))
    assert sound(mine, range(ROWS)) == set(range(ROWS))
    (tmp_path / "shard-anew.arrow").unlink()
    assert sound(mine, range(ROWS)) == set()
    assert len(mine) == 0


def test_threads_read_while_others_write_and_damage(tmp_path: Path) -> None:
    store = filled(tmp_path, 8)
    wrong: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(15):
                assert sound(store, range(48)) >= {0, *range(2, 48)}
                store.known([key(number) for number in range(60)])
                store.refresh()
        except BaseException as error:  # noqa: BLE001  handed to the test
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    first = next(file for file in shard_files(tmp_path) if content(0) in file.read_bytes())
    with first.open("r+b") as file:  # in place: to write it anew would leave it empty for a moment
        file.seek(first.read_bytes().index(content(1)))
        file.write(content(1)[::-1])
    for number in range(30):
        store.write(entries([100 + number]))
    store.save_index()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(sound(store, range(100, 130))) == 30
    assert len(store.shards) == len({shard.name for shard in store.shards}) == 38
    for file in shard_files(tmp_path):
        file.unlink()
    assert not sound(store, range(130))  # nothing was taken up twice, which nobody would forget
