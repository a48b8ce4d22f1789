"""Every entry of a folder, once, in the same order everywhere; never a step outside."""

import os
import shutil
from pathlib import Path

import pytest

from trainer.core.errors import DataError
from trainer.data.walking import FoundFile, walk


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("relative", "folder", "stem", "suffix"),
    [
        ("a.png", "", "a", ".png"),
        ("x/y/a.b.PNG", "x/y", "a.b", ".png"),
        ("x.y/none", "x.y", "none", ""),
        ("x/dot.", "x", "dot.", ""),
        ("..png", "", "..png", ""),
        ("new\nline.txt", "", "new\nline", ".txt"),
        ("\udcff.png", "", "\udcff", ".png"),
    ],
)
def test_the_parts_of_a_name(relative: str, folder: str, stem: str, suffix: str) -> None:
    file = FoundFile(relative, Path("/root"))
    assert (file.folder, file.stem, file.suffix) == (folder, stem, suffix)
    assert file.path == Path("/root") / relative
    assert file.name.isprintable()


def test_order_is_that_of_the_bytes_whatever_the_file_system_says(tmp_path: Path) -> None:
    names = ["b.png", "a.png", "B.png", "ä.png", "sub/a.png", "sub.png", "10.png", "9.png"]
    first = touch(tmp_path / "first", *names)
    second = touch(tmp_path / "second", *reversed(names))
    found = [file.relative for file in walk(first, recursive=True).files]
    assert found == [file.relative for file in walk(second, recursive=True).files]
    assert found == sorted(names, key=os.fsencode)


def test_links_are_followed_once_and_never_out(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.png", "sub/b.png")
    touch(tmp_path, "secret.png")
    for name, target in (
        ("in.png", "sub/b.png"), ("out.png", "../secret.png"), ("circle.png", "circle.png"), ("gone.png", "nothing"),
        ("folder-in", "sub"), ("folder-out", ".."), ("device.png", "/dev/zero"),
    ):  # fmt: skip
        (root / name).symlink_to(target)
    found = walk(root, recursive=True)
    assert [file.relative for file in found.files] == ["a.png", "in.png", "sub/b.png"]
    assert found.files[1].path == root.resolve() / "sub" / "b.png"
    assert dict(found.refused) == {
        "circle.png": "This link leads nowhere.",
        "device.png": "This link leads out of the folder; copy what it points to.",
        "folder-out": "This link leads out of the folder; copy what it points to.",
        "gone.png": "This link leads nowhere.",
        "out.png": "This link leads out of the folder; copy what it points to.",
    }
    assert found.passed == [("folder-in", "a link to a folder that is read anyway")]


def test_thumbnails_and_bins_of_other_programs_are_not_entered(tmp_path: Path) -> None:
    names = ["@eaDir/a.jpg/thumb.jpg", "__MACOSX/._a.png", "#recycle/old.png", ".thumbs/a.png", "Thumbs.db", "._a.png"]
    found = walk(touch(tmp_path, "a.png", *names), recursive=True)
    assert [file.relative for file in found.files] == ["a.png"]
    assert [name for name, _ in found.passed] == sorted({name.partition("/")[0] for name in names})


def test_without_recursion_folders_are_passed_over_by_name(tmp_path: Path) -> None:
    found = walk(touch(tmp_path, "a.png", "sub/b.png"), recursive=False)
    assert [file.relative for file in found.files] == ["a.png"]
    assert found.passed == [("sub", "a folder; `recursive` is off")]


def test_a_pipe_is_refused_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert walk(tmp_path, recursive=True).refused == [
        ("pipe.png", "This is no regular file but a pipe, socket or device.")
    ]


def test_a_folder_that_goes_deeper_than_the_system_can_name_ends_there(tmp_path: Path) -> None:
    deepest = tmp_path
    here = Path.cwd()
    try:
        for _ in range(25):
            os.chdir(deepest)
            Path("d" * 200).mkdir()
            deepest = Path("d" * 200)
    finally:
        os.chdir(here)
    found = walk(tmp_path, recursive=True)
    assert found.files == []
    assert [reason.startswith("This folder cannot be read") for _, reason in found.refused] == [True]
    shutil.rmtree(tmp_path / ("d" * 200))


@pytest.mark.parametrize("name", ["none", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "file")
    with pytest.raises(DataError, match="folder"):
        walk(tmp_path / name, recursive=True)
