"""Captions on the disk: nothing overwritten unasked, nothing twice, nothing without record, and all of it undone."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from PIL import Image
from typing_extensions import override

from trainer.core.errors import DataError, TrainerError
from trainer.data.captioners import writing
from trainer.data.captioners.base import Captioner, Describer
from trainer.data.captioners.missing import Mode, search
from trainer.data.captioners.undoing import UndoFile, Undone, undo
from trainer.data.captioners.writing import Outcome, Writing, added
from trainer.data.sources.folder import ImageFolder

CPU = torch.device("cpu")


class Parrot(Captioner):
    """Says the picture's path, or what it was told; remembers what it was asked."""

    kind: Literal["parrot"] = "parrot"
    text: str | None = None
    looks: ClassVar[bool] = False
    asked: ClassVar[list[str]] = []
    stop_after: ClassVar[int] = 10**9

    @property
    @override
    def at_once(self) -> int:
        return 2

    @override
    def open(self, device: torch.device) -> Describer:
        def describe(pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
            if len(Parrot.asked) >= Parrot.stop_after:
                raise KeyboardInterrupt
            Parrot.asked += names
            return [f"it is {name}" if self.text is None else self.text for name in names]

        return describe


class TagParrot(Parrot):
    gives_tags: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    Parrot.asked.clear()
    Parrot.stop_after = 10**9
    yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures."""
    made = tmp_path / "set"
    (made / "inner").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png", "d.png", "inner/a.png", "inner/e.png"):
        Image.new("RGB", (8, 8)).save(made / name)
    return made


def caption(folder: Path, captioner: Captioner | None = None, mode: Mode = "missing", **settings: Any) -> Outcome:
    source = ImageFolder(path=folder, **{key: value for key, value in settings.items() if key != "suffix"})
    found = search({".": source}, mode, settings.get("suffix"))
    work = Writing(
        captioner=captioner or Parrot(), wishes=found.wishes, record=UndoFile(folder), append=mode == "append"
    )
    return work.run(CPU)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the undo files."""
    return {
        os.fsdecode(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("captions-undo-")
    }


def record_of(folder: Path) -> Path:
    return max(folder.glob("captions-undo-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))


def take_back(folder: Path, record: Path | None = None) -> Undone:
    return undo(record or record_of(folder), {".": folder})


def test_only_what_is_missing_is_asked_and_written(folder: Path) -> None:
    (folder / "b.txt").write_bytes("Größe\r\n".encode("latin-1"))
    (folder / "c.caption").write_text("")
    outcome = caption(folder)
    assert outcome.written == 4
    assert Parrot.asked == ["set/a.png", "set/d.png", "set/inner/a.png", "set/inner/e.png"]
    assert (folder / "inner" / "e.txt").read_text() == "it is set/inner/e.png\n"
    assert (folder / "b.txt").read_bytes() == "Größe\r\n".encode("latin-1")
    assert not (folder / "c.txt").exists()
    Parrot.asked.clear()
    assert caption(folder).written == 0
    assert not Parrot.asked
    assert len(list(folder.glob("captions-undo-*"))) == 1


def test_what_was_interrupted_goes_on_where_it_stopped(folder: Path) -> None:
    Parrot.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        caption(folder)
    assert len(list(folder.rglob("*.txt"))) == 4
    first, Parrot.stop_after = list(Parrot.asked), 10**9
    Parrot.asked.clear()
    assert caption(folder).written == 2
    assert not set(first) & set(Parrot.asked)
    assert len(list(folder.rglob("*.txt"))) == 6


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_process_that_is_killed_leaves_whole_files_and_a_whole_record(folder: Path) -> None:
    """Killed as the fourth caption is being put in its place: three are there, and all of them are on record."""
    program = f"""
import os, signal, sys
from pathlib import Path
import torch
from trainer.data.captioners import writing
from trainer.data.captioners.missing import search
from trainer.data.captioners.plain import FileName
from trainer.data.captioners.undoing import UndoFile
from trainer.data.sources.folder import ImageFolder
folder = Path({str(folder)!r})
write, count = writing.write_atomically, 0
def killed(path, content):
    global count
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
writing.write_atomically = killed
wishes = search({{".": ImageFolder(path=folder)}}, "missing").wishes
writing.Writing(captioner=FileName(), wishes=wishes, record=UndoFile(folder)).run(torch.device("cpu"))
"""
    before = contents(folder)
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(folder.rglob("*.txt"))) == 3
    first = record_of(folder)
    assert caption(folder).written == 3
    assert take_back(folder).restored == 3
    assert take_back(folder, first).restored == 3
    assert contents(folder) == before


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_written(folder: Path) -> None:
    class Looking(Parrot):
        looks: ClassVar[bool] = True

    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    outcome = caption(folder, Looking())
    assert [name for name, _ in outcome.failed] == [f"{folder}/b.png"]
    assert outcome.written == 5
    assert "set/b.png" not in Parrot.asked


def test_overwriting_replaces_the_file_in_use_and_can_be_undone_to_the_byte(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfwith a mark\r\n\r\n")
    (folder / "b.txt").write_bytes("Größe".encode("latin-1"))
    (folder / "c.caption").write_text("another suffix")
    (folder / "d.txt").write_text("it is set/d.png\n")
    before = contents(folder)
    outcome = caption(folder, mode="overwrite")
    assert (outcome.written, outcome.unchanged) == (5, 1)
    assert (folder / "c.caption").read_text() == "it is set/c.png\n"
    assert not (folder / "c.txt").exists()
    done = take_back(folder)
    assert (done.restored, done.left) == (5, [])
    assert contents(folder) == before
    again = take_back(folder)
    assert (again.restored, again.already) == (0, 5)


def test_appending_adds_tags_that_are_missing_to_every_line(folder: Path) -> None:
    (folder / "a.txt").write_text("1girl, Long_Hair\nsaber \\(fate\\), solo\n")
    (folder / "b.txt").write_text(" , \n")
    before = contents(folder)
    tags = TagParrot(text="long hair, solo, saber (fate)")
    caption(folder, tags, "append")
    assert (folder / "a.txt").read_text() == (
        "1girl, Long_Hair, solo, saber (fate)\nsaber \\(fate\\), solo, long hair\n"
    )
    assert (folder / "b.txt").read_text() == "long hair, solo, saber (fate)\n"
    assert (folder / "c.txt").read_text() == "long hair, solo, saber (fate)\n"
    once = contents(folder)
    assert caption(folder, tags, "append").written == 0
    assert contents(folder) == once
    take_back(folder)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("old", "new", "tags", "both"),
    [
        ("a cat", "it sits", False, "a cat, it sits"),
        ("A cat.", "It sits.", False, "A cat. It sits."),
        ("A cat. It sits.", "It sits.", False, "A cat. It sits."),
        ("a, b,", "b, c", True, "a, b, c"),
        ("a", "A", True, "a"),
    ],
)
def test_added(old: str, new: str, tags: bool, both: str) -> None:
    assert added(old, new, tags=tags) == both
    assert added(both, new, tags=tags) == both


def test_a_caption_in_a_table_is_a_caption_and_is_added_to(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a red ball"}\n')
    assert caption(folder).written == 5
    assert not (folder / "a.txt").exists()
    caption(folder, TagParrot(text="ball, toy"), "append")
    assert (folder / "a.txt").read_text() == "a red ball, ball, toy\n"


def test_a_suffix_of_its_own_leaves_other_captions_alone(folder: Path) -> None:
    (folder / "a.txt").write_text("words")
    assert caption(folder, suffix=".tags").written == 6
    assert (folder / "a.txt").read_text() == "words"
    assert (folder / "a.tags").read_text() == "it is set/a.png\n"
    assert caption(folder, suffix=".tags").written == 0


def test_the_first_suffix_of_the_source_is_written(folder: Path) -> None:
    caption(folder, caption_suffixes=(".caption", ".txt"))
    assert (folder / "a.caption").is_file()


def test_masks_get_no_captions(folder: Path) -> None:
    (folder / "b.png").rename(folder / "a_mask.png")
    caption(folder, masks="files")
    assert not (folder / "a_mask.txt").exists()
    assert "set/a_mask.png" not in Parrot.asked


def test_two_pictures_of_one_name_share_the_words_of_the_first(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    found = search({".": ImageFolder(path=folder)}, "missing")
    assert found.shared == [(f"{folder}/a.png", f"{folder}/a.jpg")]
    caption(folder)
    assert (folder / "a.txt").read_text() == "it is set/a.jpg\n"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_what_stands_in_the_place_of_a_caption_is_left_alone(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary.txt"
    canary.write_text("outside")
    (folder / "a.txt").symlink_to(canary)
    (folder / "b.txt").mkdir()
    (folder / "c.txt").symlink_to(folder / "nowhere.txt")
    for mode in ("missing", "overwrite", "append"):
        found = search({".": ImageFolder(path=folder)}, mode)
        named = {name for name, _ in found.refused}
        assert {f"{folder}/{name}.png" for name in "abc"} <= named
        caption(folder, mode=mode)
    assert canary.read_text() == "outside"
    assert (folder / "a.txt").is_symlink()
    assert not (folder / "nowhere.txt").exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_a_caption_in_the_folder_is_followed_once(folder: Path) -> None:
    (folder / "shared.words").write_text("for both")
    for name in ("a.txt", "b.txt"):
        (folder / name).symlink_to(folder / "shared.words")
    caption(folder, mode="overwrite")
    assert (folder / "a.txt").is_symlink()
    assert (folder / "shared.words").read_text() == "it is set/a.png\n"
    take_back(folder)
    assert (folder / "shared.words").read_text() == "for both"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere not all names can be")
def test_any_name_is_written_and_undone(tmp_path: Path) -> None:
    folder = tmp_path / "süß [1] *"
    folder.mkdir()
    names = [
        b"a: b",
        b"line\nbreak",
        b"not\xffutf8",
        "\u202efelt".encode(),
        b"{0} %s $(x)",
        b"--help",
        b"q" * 251,
        "赤".encode() * 83,
    ]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / os.fsdecode(name + b".png"), format="PNG")
    before = contents(folder)
    outcome = caption(folder, Parrot(text="words"))
    assert outcome.failed == []
    assert outcome.written == len(names)
    assert all((folder / os.fsdecode(name + b".txt")).read_text() == "words\n" for name in names)
    done = take_back(folder)
    assert (done.restored, done.left) == (len(names), [])
    assert contents(folder) == before


def test_undo_leaves_alone_what_was_changed_since(folder: Path) -> None:
    caption(folder)
    (folder / "a.txt").write_text("by hand")
    (folder / "b.txt").unlink()
    done = take_back(folder)
    assert done.restored == 4
    assert done.already == 1
    assert done.left == [(f"{folder}/a.txt", "It was changed since it was written.")]
    assert (folder / "a.txt").read_text() == "by hand"


@pytest.mark.parametrize(
    "file", ["../canary.txt", "/etc/hostname", "inner/../../canary.txt", "C:\\x.txt", "way/canary.txt", "", "./a\0b"]
)
def test_an_undo_file_cannot_name_a_file_outside(folder: Path, tmp_path: Path, file: str) -> None:
    caption(folder)
    record = record_of(folder)
    canary = tmp_path / "canary.txt"
    canary.write_text("safe")
    if os.name != "nt":
        (folder / "way").symlink_to(tmp_path)
    entry = json.loads(record.read_text().splitlines()[0]) | {"file": file, "before": "evil"}
    entry["sha256"] = writing.digest_of_words(b"safe")
    with record.open("a") as opened:
        opened.write(json.dumps(entry) + "\n")
    before = contents(folder)
    with pytest.raises(TrainerError):
        take_back(folder, record)
    assert contents(folder) == before  # not even the honest entries were followed
    assert canary.read_text() == "safe"


def test_an_undo_file_of_another_folder_is_refused(folder: Path) -> None:
    caption(folder)
    with pytest.raises(TrainerError, match="another folder"):
        undo(record_of(folder), {"datasets/other": folder})
    assert (folder / "a.txt").exists()


@pytest.mark.parametrize("content", ["no json\n", '{"folder": ".", "file": "a"}\n', "[1]\n", '{"file": 3}\n', "null\n"])
def test_what_is_no_undo_file_is_refused(folder: Path, tmp_path: Path, content: str) -> None:
    record = tmp_path / "x.jsonl"
    record.write_text(content)
    with pytest.raises(TrainerError, match="no undo file"):
        take_back(folder, record)
    with pytest.raises(TrainerError, match="cannot be read"):
        take_back(folder, tmp_path / "absent.jsonl")


def test_a_torn_last_line_of_a_record_is_passed_over(folder: Path) -> None:
    before = contents(folder)
    caption(folder)
    record = record_of(folder)
    with record.open("a") as opened:
        opened.write('{"folder": ".", "fi')
    assert take_back(folder, record).restored == 6
    assert contents(folder) == before


def test_pictures_without_words_are_told_and_stay_without_a_file(folder: Path) -> None:
    outcome = caption(folder, Parrot(text=" \n\x07"))
    assert len(outcome.silent) == 6
    assert outcome.written == 0
    assert not list(folder.rglob("*.txt"))
    assert not list(folder.glob("captions-undo-*"))


def test_a_file_that_came_to_be_meanwhile_is_not_overwritten(folder: Path) -> None:
    found = search({".": ImageFolder(path=folder)}, "missing")
    (folder / "a.txt").write_text("by another")
    outcome = Writing(captioner=Parrot(), wishes=found.wishes, record=UndoFile(folder)).run(CPU)
    assert (outcome.written, outcome.unchanged) == (5, 1)
    assert (folder / "a.txt").read_text() == "by another"


def test_a_full_disk_stops_with_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "write_atomically", full)
    with pytest.raises(TrainerError, match="No space left"):
        caption(folder)
    assert len(Parrot.asked) == 2  # the captioner is not asked for words that have no place


def test_a_batch_that_is_refused_is_asked_one_by_one(folder: Path) -> None:
    class Picky(Parrot):
        @override
        def open(self, device: torch.device) -> Describer:
            def describe(pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
                if "set/b.png" in names:
                    raise DataError("Not this one.")
                return ["words"] * len(names)

            return describe

    outcome = caption(folder, Picky())
    assert outcome.failed == [(f"{folder}/b.png", "Not this one.")]
    assert outcome.written == 5


def test_progress_is_told_from_nothing_to_all(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    show: Callable[[str, int, int], None] = lambda title, done, total: told.append((done, total))  # noqa: E731
    found = search({".": ImageFolder(path=folder)}, "missing")
    Writing(captioner=Parrot(), wishes=found.wishes, record=UndoFile(folder)).run(CPU, show)
    assert told == [(0, 6), (2, 6), (4, 6), (6, 6)]
