"""Journals: what a killed writer has left is taken up once, as far as it is whole; a living one's is let be."""

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from trainer.core.errors import TrainerError
from trainer.data import journal
from trainer.data.journal import Journal, rows_of, take_up
from trainer.data.shard_folders import LocalFolder
from trainer.data.shards import ShardStore


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def entries(numbers: range) -> dict[str, bytes]:
    return {key(n): hashlib.sha512(str(n).encode()).digest() * (1 + n % 5) for n in numbers}


def left_by_a_killed_writer(folder: Path, *numbers: range) -> Path:
    """A journal as a kill leaves it, one append for each of `numbers`."""
    folder.mkdir(exist_ok=True)
    writer = Journal(folder)
    for some in numbers:
        writer.append(entries(some))
    writer.leave()
    (path,) = folder.glob(".journal-*.rows")
    return path


def taken_up(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def take(contents: Mapping[str, bytes]) -> None:
        assert not found.keys() & contents.keys()
        found.update(contents)

    take_up(folder, take)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING):
        yield caplog


def test_what_was_left_is_taken_up_once_and_nothing_remains(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    left_by_a_killed_writer(tmp_path, range(3), range(3, 5))
    assert taken_up(tmp_path) == entries(range(5))
    assert names(tmp_path) == []
    assert taken_up(tmp_path) == {}
    assert not told.text


def test_a_journal_is_gone_when_its_shard_is_written_and_never_there_where_nothing_came(tmp_path: Path) -> None:
    writer = Journal(tmp_path)
    writer.append({})
    assert names(tmp_path) == []
    writer.append(entries(range(2)))
    assert len(names(tmp_path)) == 2
    writer.end()
    assert names(tmp_path) == []
    writer.end()
    Journal(tmp_path).leave()
    assert names(tmp_path) == []


def test_wherever_it_was_cut_the_whole_rows_before_are_taken_up(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    whole = left_by_a_killed_writer(tmp_path / "whole", range(4)).read_bytes()
    expected = list(entries(range(4)).items())
    ends = [len(journal._HEAD)]  # pyright: ignore[reportPrivateUsage]
    for _, content in expected:
        ends.append(ends[-1] + 40 + len(content))
    assert ends[-1] == len(whole)
    for size in range(len(whole) + 1):
        (tmp_path / ".journal-cut.rows").write_bytes(whole[:size])
        count = sum(end <= size for end in ends[1:])
        assert list(taken_up(tmp_path).items()) == expected[:count], size
        assert names(tmp_path) == ["whole"]
    assert not told.text  # a kill in the middle of a row is no damage


def test_nothing_behind_a_damage_is_used_and_no_damage_is_an_error(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """Every seventh bit."""
    whole = left_by_a_killed_writer(tmp_path / "whole", range(4)).read_bytes()
    expected = list(entries(range(4)).items())
    ends = [len(journal._HEAD)]  # pyright: ignore[reportPrivateUsage]
    for _, content in expected:
        ends.append(ends[-1] + 40 + len(content))
    path = tmp_path / "damaged"
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        count = sum(8 * end <= bit for end in ends[1:]) if bit >= 8 * ends[0] else 0
        assert list(rows_of(path)) == expected[:count], bit
    assert "is damaged" in told.text
    assert "no journal of the cache" in told.text


@pytest.mark.parametrize("tail", [bytes(5000), b"\xff" * 5000, b"text " * 1000], ids=["zeros", "ones", "text"])
def test_a_tail_that_a_power_cut_left_is_not_used(tmp_path: Path, tail: bytes) -> None:
    path = left_by_a_killed_writer(tmp_path, range(3))
    path.write_bytes(path.read_bytes() + tail)
    assert taken_up(tmp_path) == entries(range(3))
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"train", bytes(5000), b"I am no journal, and longer than a head"])
def test_what_is_no_journal_is_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".journal-foreign.rows").write_bytes(content)
    assert taken_up(tmp_path) == {}
    assert names(tmp_path) == []


def test_folders_and_links_in_the_place_of_a_journal_are_let_be(tmp_path: Path) -> None:
    path = left_by_a_killed_writer(tmp_path / "elsewhere", range(3))
    (tmp_path / ".journal-folder.rows").mkdir()
    (tmp_path / ".journal-link.rows").symlink_to(path)
    assert taken_up(tmp_path) == {}
    assert path.is_file()


def test_large_journals_are_taken_up_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_AT_ONCE", 500)
    left_by_a_killed_writer(tmp_path, range(20))
    pieces: list[int] = []
    take_up(tmp_path, lambda contents: pieces.append(len(contents)))
    assert sum(pieces) == 20
    assert max(pieces) <= 5


def test_a_living_writer_s_journal_is_let_be(tmp_path: Path) -> None:
    writer = Journal(tmp_path)
    writer.append(entries(range(2)))
    before = names(tmp_path)
    assert taken_up(tmp_path) == {}
    LocalFolder(tmp_path).discard()
    writer.append(entries(range(2, 4)))
    assert names(tmp_path) == before
    writer.leave()
    assert taken_up(tmp_path) == entries(range(4))


def test_what_cannot_be_written_now_is_taken_up_later(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    left_by_a_killed_writer(tmp_path, range(3))

    def full(_contents: Mapping[str, bytes]) -> None:
        raise TrainerError("The cache cannot be written: No space left on device.")

    take_up(tmp_path, full)
    assert "cannot be taken up now" in told.text
    assert taken_up(tmp_path) == entries(range(3))
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="rights are otherwise there")
def test_a_disk_that_takes_no_journal_is_said_once_and_stops_nothing(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    import resource

    writer = Journal(tmp_path)
    writer.append(entries(range(3)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        writer.append({key(9): os.urandom(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []  # its room is the shard's
    writer.append(entries(range(3, 5)))
    writer.next().append(entries(range(5, 7)))
    assert names(tmp_path) == []
    assert told.text.count("outlives a kill only when") == 1


def test_no_name_of_a_journal_can_be_foreseen_and_no_planted_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    writers = [Journal(tmp_path) for _ in range(50)]
    for writer in writers:
        writer.append(entries(range(1)))
    assert len(names(tmp_path)) == 100
    for writer in writers:
        writer.end()
    canary = tmp_path / "canary"
    canary.write_text("untouched", encoding="utf-8")
    monkeypatch.setattr("trainer.data.journal.secrets.token_hex", "{:024}".format)
    (tmp_path / f".journal-{12:024}.rows").symlink_to(canary)
    Journal(tmp_path).append(entries(range(1)))
    assert canary.read_text(encoding="utf-8") == "untouched"
    assert "outlives a kill only when" in told.text


def test_locks_without_a_journal_are_swept_away_after_a_day(tmp_path: Path) -> None:
    kept = left_by_a_killed_writer(tmp_path, range(1)).with_suffix(".lock")
    for name in (".journal-old.lock", ".journal-fresh.lock", ".journals.lock"):
        (tmp_path / name).touch()
    for old in (kept, tmp_path / ".journal-old.lock", tmp_path / ".journals.lock"):
        os.utime(old, (1, 1))
    ShardStore(tmp_path)
    assert sorted(tmp_path.glob("*.lock")) == sorted([kept, tmp_path / ".journal-fresh.lock"])


def test_a_folder_of_nothing_goes_with_what_killed_processes_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    left_by_a_killed_writer(folder, range(2))
    LocalFolder(folder).discard()
    assert not folder.exists()


# --- processes ------------------------------------------------------------------------------------------------------

TOGETHER = """
import hashlib, os, sys
from pathlib import Path
from trainer.data import journal
from trainer.data.journal import Journal
from trainer.data.shards import ShardStore
import filelock, pyarrow, pyarrow.ipc

key = lambda n: hashlib.sha256(str(n).encode()).hexdigest()
root = Path(sys.argv[1])

def child(deed):
    pid = os.fork()
    if not pid:
        try:
            os._exit(deed())
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(99)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def be_killed(folder, numbers):
    writer = Journal(folder)
    for n in numbers:
        writer.append({key(n): b"content %d" % n})
    os.kill(os.getpid(), 9)

def take(folder, gate):
    os.read(gate, 1)
    store, given = ShardStore(folder), []
    def into(contents):
        given.extend(contents)
        store.write(contents)
    journal.take_up(folder, into)
    store.refresh()
    assert all(store.get(key(n)) == b"content %d" % n for n in range(20)), "it did not wait for the other"
    assert len(given) in (0, 20), given
    return 1 if given else 0

takers = []
for turn in range(25):
    folder = root / str(turn)
    folder.mkdir()
    assert ended(child(lambda: be_killed(folder, range(20)))) == -9
    here, there = os.pipe()
    pids = [child(lambda: take(folder, here)) for _ in range(3)]
    os.write(there, b"123")
    codes = [ended(pid) for pid in pids]
    assert sorted(codes) == [0, 0, 1], codes
    takers.append(codes.index(1))
    assert [path.name for path in folder.iterdir() if not path.name.startswith("shard-")] == []
    assert len(list(folder.glob("shard-*.arrow"))) == 1
print(sorted(set(takers)))
"""

LIVING = """
import os, signal, sys, time
from pathlib import Path
from trainer.data.journal import Journal
writer = Journal(Path(sys.argv[1]))
writer.append({"ab" * 32: b"content"})
print("there", flush=True)
time.sleep(60)
"""


def start(code: str, folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_another_process_s_journal_is_let_be_until_it_is_killed(tmp_path: Path) -> None:
    writer = start(LIVING, tmp_path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "there\n"
    assert taken_up(tmp_path) == {}
    assert len(names(tmp_path)) == 2
    writer.kill()
    writer.communicate(timeout=30)
    assert taken_up(tmp_path) == {"ab" * 32: b"content"}
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children without a start of their own")
def test_of_processes_that_start_together_one_takes_up_what_was_left_and_the_others_wait(tmp_path: Path) -> None:
    process = start(TOGETHER, tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("[")
