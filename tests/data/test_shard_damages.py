"""Whatever happens to the files of a store: it gives what was put in, or nothing and a warning."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow
import pytest

from trainer.data.shard_files import ShardError, read_rows, sound_rows
from trainer.data.shard_index import INDEX_NAME, IndexFileError, load_index
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


# --- damages -------------------------------------------------------------------------------------------------------

Damage = Callable[[Path], object]


def flipped(share: float, bit: int) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 1 << bit
        path.write_bytes(content)

    return damage


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def zeroed(begin: float, end: float) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        first, last = int(begin * len(content)), int(end * len(content))
        content[first:last] = bytes(last - first)
        path.write_bytes(content)

    return damage


def replaced(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def doubled(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def swapped(path: Path) -> None:
    """Two shards of the folder change their names."""
    other = next(file for file in shard_files(path.parent) if file != path)
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def another_s(path: Path) -> None:
    """A shard of another folder takes the name of ours."""
    ShardStore(path.parent / "other").write(entries(range(500, 500 + ROWS)))
    shard_files(path.parent / "other")[0].replace(path)
    shutil.rmtree(path.parent / "other")


def of_the_first_layout(path: Path) -> None:
    """What the trainer wrote before there was an index: a stream."""
    columns = {"key": [key(0)], "shapes": ["[]"], "content": [b"whatever"], "checksum": [0]}
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def foreign_arrow(path: Path) -> None:
    table = pyarrow.table({"key": [bytes.fromhex(key(0))], "content": [b"whatever"]})
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def rows_without_their_checksum(path: Path) -> None:
    """The right columns, and a wrong content with a right checksum; but nobody vouches for the list."""
    with pyarrow.ipc.open_file(str(path)) as reader:
        table = reader.read_all()
    with pyarrow.ipc.new_file(str(path), table.schema.with_metadata({"layout": "trainer-shard-1"})) as writer:
        writer.write_table(table)


SHARD_DAMAGES: dict[str, Damage] = {
    **{f"bit {n % 8} at {n}/40": flipped(n / 40, n % 8) for n in range(41)},
    **{f"cut at {share}": cut(share) for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999)},
    **{f"zeroed from {share}": zeroed(share, 1.0) for share in (0.0, 0.3, 0.6, 0.9, 0.99)},
    **{f"zeroed until {share}": zeroed(0.0, share) for share in (0.01, 0.2, 0.7)},
    "text": replaced(b"I am no Arrow file"),
    "zeros": replaced(bytes(5000)),
    "longer": longer,
    "doubled": doubled,
    "swapped": swapped,
    "another folder's": another_s,
    "first layout": of_the_first_layout,
    "foreign Arrow": foreign_arrow,
    "unvouched": rows_without_their_checksum,
    "gone": Path.unlink,
}


def is_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> set[int]:
    """Open the folder anew: what is missing was warned of, can be written, and is then there for good."""
    everything = set(range(SHARDS * ROWS))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        store = ShardStore(folder)
        missing = everything - sound(store, everything)
    assert not store.known([key(number) for number in missing]).any()
    store.write(entries(missing))
    store.save_index()
    for opened in (store, ShardStore(folder)):
        assert sound(opened, everything) == everything
    return missing


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
@pytest.mark.parametrize("damage", SHARD_DAMAGES)
def test_a_damaged_shard_is_never_used(
    tmp_path: Path, damage: str, index: bool, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, index=index)
    SHARD_DAMAGES[damage](shard_files(tmp_path)[1])
    missing = is_made_again(tmp_path, caplog)
    assert len(missing) <= ROWS
    if damage in ("gone", "another folder's"):
        assert len(missing) == ROWS  # nothing is left to warn of
    elif missing:
        assert "cache" in caplog.text
    if damage in ("text", "zeros", "first layout", "foreign Arrow", "cut at 0.0", "cut at 0.5"):
        assert len(missing) == ROWS
        assert not any(file.stat().st_size < 1000 for file in shard_files(tmp_path))


def test_every_damaged_bit_of_a_content_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 1)
    (path,) = shard_files(tmp_path)
    whole = path.read_bytes()
    for number in range(ROWS):
        begin = whole.index(content(number))
        for place in (begin, begin + 31, begin + len(content(number)) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 8
            path.write_bytes(damaged)
            caplog.clear()
            store = ShardStore(tmp_path)
            assert sound(store, range(ROWS)) == set(range(ROWS)) - {number}
            assert "Damaged rows in the cache are made again: 1 of 6" in caplog.text


INDEX_DAMAGES: dict[str, Damage] = {
    **{f"bit {n % 8} at {n}/16": flipped(n / 16, n % 8) for n in range(17)},
    **{
        f"bit in the header, byte {n}": flipped(0.0, 0) if not n else flipped(n / 2500, n % 8)
        for n in range(0, 900, 90)
    },
    **{f"cut at {share}": cut(share) for share in (0.0, 0.001, 0.2, 0.6, 0.99)},
    **{f"zeroed from {share}": zeroed(share, 1.0) for share in (0.0, 0.4, 0.8, 0.99)},
    "text": replaced(b"I am no index"),
    "JSON": replaced(b"\x10\0\0\0\0\0\0\0[1, 2, 3, 4, 5 ]"),
    "deep": replaced((100_000).to_bytes(8, "little") + b"[" * 100_000),
    "longer": longer,
    "doubled": doubled,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_a_damaged_index_costs_nothing(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    INDEX_DAMAGES[damage](tmp_path / INDEX_NAME)
    assert not is_made_again(tmp_path, caplog)
    if damage.startswith(("cut", "zeroed", "text", "JSON", "deep")):
        assert "index of the cache cannot be used" in caplog.text


def test_an_index_of_another_folder_or_another_time_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    filled(folder, 2)
    early = (folder / INDEX_NAME).read_bytes()
    store = ShardStore(folder)
    store.write(entries(range(2 * ROWS, 3 * ROWS)))
    store.write(entries(range(3 * ROWS, 4 * ROWS)))
    (folder / INDEX_NAME).write_bytes(early)
    assert not is_made_again(folder, caplog)
    filled(other, 3)
    shutil.copy(other / INDEX_NAME, folder / INDEX_NAME)
    assert not is_made_again(folder, caplog)


def test_an_index_whose_shards_were_all_exchanged_misleads_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The names and sizes are right, and every place in it is wrong."""
    filled(tmp_path, SHARDS)
    files = shard_files(tmp_path)
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)
    assert not is_made_again(tmp_path, caplog)


def test_a_folder_in_the_place_of_a_file_is_let_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, index=False)
    (tmp_path / "shard-folder.arrow").mkdir()
    (tmp_path / INDEX_NAME).mkdir()
    store = ShardStore(tmp_path)
    assert len(sound(store, range(24))) == 24
    store.save_index()
    assert "cannot be" in caplog.text


@pytest.mark.parametrize("first", range(3))
def test_one_bit_anywhere_in_a_shard_or_an_index(tmp_path: Path, first: int) -> None:
    """Rows that are told are sound or found out, an index is as it was written or refused; nothing else is raised.

    Every 37th bit; all of them were tried once.
    """
    store = ShardStore(tmp_path)
    store.write(entries([0, 5, 10, 15]))
    store.save_index()
    (shard,) = shard_files(tmp_path)
    index, tried = tmp_path / INDEX_NAME, tmp_path / "tried"
    for bit in range(first * 12, 8 * shard.stat().st_size, 37):
        damaged = with_a_bit_turned(shard, bit)
        tried.write_bytes(damaged)
        try:
            rows = read_rows(tried)
        except ShardError:
            continue
        good = rows.where(sound_rows(tried, rows))
        for key_found, begin, length in zip(good.keys, good.offsets.tolist(), good.lengths.tolist(), strict=True):
            assert entries([0, 5, 10, 15])[key_found.tobytes().hex()] == damaged[begin : begin + length]
    for bit in range(first * 12, 8 * index.stat().st_size, 37):
        tried.write_bytes(with_a_bit_turned(index, bit))
        with pytest.raises(IndexFileError):
            load_index(tried)


def with_a_bit_turned(path: Path, bit: int) -> bytes:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)
