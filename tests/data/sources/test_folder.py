"""Every file of a folder is accounted for, exactly once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from trainer.core.errors import DataError
from trainer.data.account import Account
from trainer.data.decoding import ImageLimits
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan
from trainer.data.sources import AnySource
from trainer.data.sources.folder import ImageFolder

LIMITS = ImageLimits()
Painter = Callable[..., Path]


def account_of(folder: Path, **settings: object) -> Account:
    source = ImageFolder.model_validate({"path": folder, **settings})
    return scan([source], LIMITS)


def reasons(account: Account) -> dict[str, str]:
    return {remark.name: remark.reason for remark in (*account.rejected, *account.ignored)}


def files_below(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


@pytest.fixture
def hostile(paint: Painter, tmp_path: Path) -> Path:
    """A folder with one of each."""
    folder = paint("good.png", shade=1, caption="a good one").parent
    paint("same-stem.png", shade=2)
    paint("same-stem.jpg", shade=3, caption="of two pictures")
    paint("deep/er/inner.png", shade=4, caption="inner")
    paint("no-caption.png", shade=5)
    paint("latin.png", shade=6).with_suffix(".txt").write_bytes("café".encode("latin-1"))
    paint("utf16.png", shade=7).with_suffix(".txt").write_bytes("über\r\nalles".encode("utf-16"))
    paint("bom.png", shade=8).with_suffix(".caption").write_bytes(b"\xef\xbb\xbfwith \x00mark\x07")
    paint("blind-utf16.png", shade=9).with_suffix(".txt").write_bytes("plain".encode("utf-16-le"))
    shutil.copy(folder / "good.png", folder / "no-suffix")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("I am a text")
    (folder / "photo.heic").write_bytes(b"whatever")
    (folder / "lonely.txt").write_text("of nobody")
    (folder / "LICENSE.txt").write_text("do what you want")
    (folder / "README.md").write_text("# read")
    (folder / ".hidden.png").touch()
    (folder / "Thumbs.db").touch()
    os.mkfifo(folder / "pipe.png")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (folder / "out.png").symlink_to(secret)
    (folder / "nowhere.png").symlink_to("not-there.png")
    (folder / "inside.png").symlink_to("good.png")
    (folder / "inside.txt").write_text("through a link")
    return folder


def test_every_file_stands_in_exactly_one_list(hostile: Path) -> None:
    account = account_of(hostile)
    assert account.found == files_below(hostile)
    lists = [
        [example.name for example in account.accepted],
        [remark.name for remark in account.captions],
        [remark.name for remark in account.masks],
        [remark.name for remark in account.rejected],
        [remark.name for remark in account.ignored],
    ]
    names = [name for one in lists for name in one]
    assert len(names) == len(set(names)) == account.found
    assert account.as_json()["found"] == sum(
        account.as_json()["counts"][k] for k in list(account.as_json()["counts"])[:5]
    )
    json.dumps(account.as_json())


def test_good_files_are_used_and_bad_ones_named(hostile: Path) -> None:
    account = account_of(hostile)
    captions = {example.name: example.caption for example in account.accepted}
    assert captions == {
        "bom.png": "with mark",
        "deep/er/inner.png": "inner",
        "good.png": "a good one",
        "inside.png": "through a link",
        "no-caption.png": "",
        "no-suffix": "",
        "same-stem.jpg": "of two pictures",
        "same-stem.png": "of two pictures",
        "utf16.png": "über",
    }
    refused = {remark.name for remark in account.rejected}
    assert refused == {
        *("latin.png", "latin.txt", "blind-utf16.png", "blind-utf16.txt", "empty.png", "text.png"),
        *("photo.heic", "pipe.png", "out.png", "nowhere.png"),
    }
    why = reasons(account)
    assert "UTF-8" in why["latin.txt"]
    assert "out of the folder" in why["out.png"]
    assert why["LICENSE.txt"] == why["README.md"] == "not a picture"
    assert why["lonely.txt"] == "a caption without a picture"
    warned = {(remark.name, remark.reason) for remark in account.warnings}
    assert ("no-caption.png", "has no caption") in warned
    assert any(name == "same-stem.png" and "same caption" in reason for name, reason in warned)


def test_refused_files_stop_the_run_unless_it_says_skip(hostile: Path) -> None:
    account = account_of(hostile)
    with pytest.raises(DataError) as caught:
        account.check("stop")
    assert caught.value.exit_code == 3
    assert "10 of" in str(caught.value)
    assert "latin.txt" in str(caught.value)
    account.check("skip")


def test_with_nothing_left_even_skip_stops(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="no picture is left"):
        account_of(tmp_path).check("skip")


def test_the_message_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}.png").touch()
    with pytest.raises(DataError) as caught:
        account_of(tmp_path).check("stop")
    assert "09.png" in str(caught.value)
    assert "10.png" not in str(caught.value)
    assert "and 15 more" in str(caught.value)


@pytest.mark.parametrize("name", ["no-folder", "a-file"])
def test_a_source_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(DataError, match="folder"):
        account_of(tmp_path / name)


def test_a_folder_without_pictures_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.pdf"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"2 \.txt, 1 \.pdf"):
        account_of(tmp_path)


def test_the_order_and_the_account_do_not_depend_on_the_file_system(paint: Painter, tmp_path: Path) -> None:
    names = ["b.png", "a.png", "B.png", "ä.png", "sub/a.png", "sub.png", "10.png", "9.png"]
    for shade, name in enumerate(names):
        paint(name, shade=shade, caption=name)
    folder = tmp_path / "pictures"
    other = tmp_path / "pictures-again"
    for name in reversed(names):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, other / name)
        shutil.copy((folder / name).with_suffix(".txt"), (other / name).with_suffix(".txt"))
    first, second = account_of(folder), account_of(other)
    assert [(e.name, e.key, e.captions) for e in first.accepted] == [
        (e.name, e.key, e.captions) for e in second.accepted
    ]
    assert first.captions == second.captions


def test_odd_names_are_kept_and_printed_harmlessly(paint: Painter, tmp_path: Path) -> None:
    folder = paint("plain.png").parent
    odd = [
        b"new\nline.png",
        b"\xff\xfe.png",
        b"[a-z]*?.png",
        "‮gnp.exe.png".encode(),
        b"%s {0}.png",
        b"a" * 251 + b".png",
    ]
    for name in odd:
        shutil.copy(folder / "plain.png", folder / os.fsdecode(name))
    account = account_of(folder)
    assert len(account.accepted) == len(odd) + 1
    assert all(example.name.isprintable() for example in account.accepted)
    opened = OpenSources([ImageFolder(path=folder)])
    assert all(opened.content(example, LIMITS) for example in account.accepted)
    json.dumps(account.as_json()).encode("utf-8")


def test_a_numbered_folder_gives_repeats_and_words(paint: Painter) -> None:
    root = paint("10_blob creature/a.png", shade=1).parent.parent
    paint("10_blob creature/b.png", shade=2, caption="own words")
    paint("2024_holiday/c.png", shade=3)
    paint("plain/d.png", shade=4)
    found = {e.name: (e.repeats, e.caption) for e in account_of(root, repeats=2).accepted}
    assert found == {
        "10_blob creature/a.png": (20, "blob creature"),
        "10_blob creature/b.png": (20, "own words"),
        "2024_holiday/c.png": (2, ""),
        "plain/d.png": (2, ""),
    }
    inside = account_of(root / "10_blob creature").accepted
    assert [(e.repeats, e.caption) for e in inside] == [(10, "blob creature"), (10, "own words")]
    assert account_of(root / "10_blob creature", numbered_folders=False).accepted[0].repeats == 1


def test_without_recursion_inner_folders_are_passed_over_by_name(paint: Painter) -> None:
    root = paint("a.png").parent
    paint("inner/b.png")
    account = account_of(root, recursive=False)
    assert [e.name for e in account.accepted] == ["a.png"]
    assert "recursive" in reasons(account)["inner"]


def test_a_folder_behind_a_link_is_never_entered(paint: Painter, tmp_path: Path) -> None:
    folder = paint("a.png").parent
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "a.png", tmp_path / "elsewhere" / "b.png")
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    account = account_of(folder)
    assert [e.name for e in account.accepted] == ["a.png"]
    assert [r.name for r in account.rejected] == ["out"]
    assert [r.name for r in account.ignored] == ["circle"]


def test_settings_reach_the_examples_and_several_sources_keep_their_order(paint: Painter) -> None:
    first = paint("one/a.png", shade=1).parent
    second = paint("two/b.png", shade=2).parent
    sources = [
        ImageFolder(path=second, regularisation=True, weight=0.5),
        ImageFolder(path=first, repeats=3),
    ]
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    account = scan(sources, LIMITS, tell)
    assert [(e.source, e.name, e.repeats, e.weight, e.regularisation) for e in account.accepted] == [
        (0, "b.png", 1, 0.5, True),
        (1, "a.png", 3, 1.0, False),
    ]
    assert account.sources == (str(second), str(first))
    assert told == [("reading pictures", 1, 1), ("reading pictures", 2, 2)]


def test_caption_files_in_order_of_their_suffixes(paint: Painter) -> None:
    picture = paint("a.png", caption="from txt")
    picture.with_suffix(".caption").write_text("from caption")
    assert account_of(picture.parent).accepted[0].caption == "from txt"
    account = account_of(picture.parent, caption_suffixes=[".caption", ".txt"])
    assert account.accepted[0].caption == "from caption"
    assert reasons(account) == {"a.txt": "a.caption is the caption"}


def test_a_source_is_read_by_its_kind() -> None:
    adapter: TypeAdapter[AnySource] = TypeAdapter(AnySource)
    assert adapter.validate_python({"kind": "folder", "path": "x"}) == ImageFolder(path=Path("x"))
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "cloud", "path": "x"})
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "folder", "path": "x", "repeats": 0})
