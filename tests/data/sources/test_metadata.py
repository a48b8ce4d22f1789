"""Captions out of metadata.jsonl, .csv and .parquet: the right one for each picture, and no row lost in silence."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from string import printable as ascii_signs

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from trainer.data.account import Account
from trainer.data.decoding import ImageLimits
from trainer.data.scanning import scan
from trainer.data.sources import metadata, tables
from trainer.data.sources.folder import ImageFolder
from trainer.data.sources.metadata import CaptionStore, Tables, read_tables
from trainer.data.walking import walk

Painter = Callable[..., Path]


def account_of(folder: Path, **settings: object) -> Account:
    return scan([ImageFolder.model_validate({"path": folder, **settings})], ImageLimits())


def tables_of(folder: Path, column: str | None = None) -> Tables:
    return read_tables(walk(folder, recursive=True), column)


def captions_of(account: Account) -> dict[str, tuple[str, ...]]:
    return {example.name: example.captions for example in account.accepted}


def write_jsonl(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_table(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """The same rows in any of the three forms."""
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def folder(paint: Painter) -> Path:
    for shade, name in enumerate(("a.png", "b.png", "deep/er/c.png")):
        paint(name, shade=shade)
    return paint("deep/d.png", shade=9).parent.parent


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_each_form_gives_the_same_captions(folder: Path, suffix: str) -> None:
    write_table(
        folder / f"metadata{suffix}",
        [
            {"file_name": "a.png", "text": 'a cat, "sitting"'},
            {"file_name": "./b.png", "text": "über alles"},
            {"file_name": "deep/er/c.png", "text": "inner"},
            {"file_name": "deep\\d.png", "text": "written on Windows"},
        ],
    )
    account = account_of(folder)
    assert captions_of(account) == {
        "a.png": ('a cat, "sitting"',),
        "b.png": ("über alles",),
        "deep/er/c.png": ("inner",),
        "deep/d.png": ("written on Windows",),
    }
    assert [remark.name for remark in account.captions] == [f"metadata{suffix}"]
    assert not account.rejected
    assert not account.warnings
    assert account.found == 5


def test_the_nearest_table_wins(folder: Path) -> None:
    write_jsonl(
        folder / "metadata.jsonl", [{"file_name": "deep/er/c.png", "text": "far"}, {"file_name": "a.png", "text": "a"}]
    )
    write_jsonl(folder / "deep" / "metadata.jsonl", [{"file_name": "er/c.png", "text": "near"}])
    account = account_of(folder)
    assert captions_of(account)["deep/er/c.png"] == ("near",)
    assert captions_of(account)["a.png"] == ("a",)
    assert [(r.name, "nearer" in r.reason) for r in account.warnings if "no caption" not in r.reason] == [
        ("deep/er/c.png", True)
    ]
    assert len(account.captions) == 2


def test_of_two_tables_in_one_folder_one_is_used(folder: Path) -> None:
    write_table(folder / "metadata.csv", [{"file_name": "a.png", "text": "csv"}])
    write_table(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "jsonl"}])
    account = account_of(folder)
    assert captions_of(account)["a.png"] == ("jsonl",)
    assert [remark.name for remark in account.ignored] == ["metadata.csv"]
    assert any(remark.name == "metadata.csv" and "second table" in remark.reason for remark in account.warnings)
    assert account.found == 6


def test_lists_lines_and_repeated_rows_are_alternatives(folder: Path) -> None:
    write_jsonl(
        folder / "metadata.jsonl",
        [
            {"file_name": "a.png", "captions": ["one", None, "two\nthree", "one"]},
            {"file_name": "b.png", "captions": "first"},
            {"file_name": "b.png", "captions": "second"},
            {"file_name": "deep/d.png", "captions": None},
        ],
    )
    account = account_of(folder)
    assert captions_of(account)["a.png"] == ("one", "two", "three")
    assert captions_of(account)["b.png"] == ("first", "second")
    assert captions_of(account)["deep/d.png"] == ()
    reasons = {remark.name: remark.reason for remark in account.warnings}
    assert "more than once" in reasons["b.png"]
    assert "line 3" in reasons["b.png"]


def test_a_parquet_column_of_lists(folder: Path) -> None:
    rows = [{"file_name": "a.png", "captions": ["one", "two"]}, {"file_name": "b.png", "captions": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
    account = account_of(folder)
    assert captions_of(account)["a.png"] == ("one", "two")
    assert captions_of(account)["b.png"] == ()


def test_a_caption_file_beside_the_picture_wins(folder: Path, paint: Painter) -> None:
    paint("a.png", shade=0, caption="beside")
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "in the table"}])
    assert captions_of(account_of(folder))["a.png"] == ("beside",)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png", "/etc/passwd", "deep/../../secret.png", "C:\\secret.png", "\\\\host\\secret.png", "file:///etc/passwd",
        "a.png\0", "", ".", "..", "x" * 5000, "a.png/../../../secret.png", "link/secret.png", "missing.png", "A.PNG",
    ],
)  # fmt: skip
def test_a_row_that_names_no_file_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "link").symlink_to(tmp_path)
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "a"}, {"file_name": name, "text": "x"}])
    account = account_of(folder)
    refused = [remark for remark in account.rejected if remark.name.startswith("metadata.jsonl")]
    assert [remark.name for remark in refused] == ["metadata.jsonl, line 2"]
    assert captions_of(account)["a.png"] == ("a",)
    assert "secret" not in "".join(captions_of(account))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{broken", "no JSON"),
        (b'"a.png"', "no JSON object"),
        (b"[1, 2]", "no JSON object"),
        (b"{}", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"file_name": "a.png", "text": "caf\xe9"}', "UTF-8"),
        (b'{"file_name": "a.png", "text": 7}', "a number"),
        (b'{"file_name": "a.png", "text": true}', "true or false"),
        (b'{"file_name": "a.png", "text": {"a": 1}}', "an object"),
        (b'{"file_name": 7, "text": "x"}', "no file_name"),
        (b'{"text": "x"}', "no file_name"),
        (b'{"file_name": "a.png", "text": "' + b"x" * (1 << 20) + b'"}', "longer than"),
        (b'{"file_name": "a.png", "text": ' + b"9" * 6000 + b"}", "no JSON"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_a_bad_line_is_refused_and_the_others_count(folder: Path, line: bytes, said: str) -> None:
    good = b'{"file_name": "b.png", "text": "good"}'
    (folder / "metadata.jsonl").write_bytes(good + b"\n\n" + line + b"\r\n" + good.replace(b"b.png", b"deep/d.png"))
    account = account_of(folder)
    assert [remark.name for remark in account.rejected] == ["metadata.jsonl, line 3"]
    assert said in account.rejected[0].reason
    assert captions_of(account)["b.png"] == captions_of(account)["deep/d.png"] == ("good",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}'.encode("utf-16-le"), "UTF-16"),
        ("metadata.jsonl", b"", "no row"),
        ("metadata.csv", b"", "no row"),
        ("metadata.csv", b"name;text\na.png;x\n", "no column file_name"),
        ("metadata.csv", b"file_name,caption,prompt\na.png,x,y\n", "Several columns"),
        ("metadata.csv", b"file_name,text\n" + b"a" * (2 << 20), "a.png"),
        ("metadata.parquet", b"PAR1 and then nothing", "Parquet"),
        ("metadata.parquet", b"", "Parquet"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    account = account_of(folder)
    assert len(account.rejected) == 1
    assert account.rejected[0].name.startswith(name)
    assert said in account.rejected[0].reason or "more than" in account.rejected[0].reason
    assert not any(captions_of(account).values())


def test_a_damaged_parquet_table_gives_no_traceback(folder: Path) -> None:
    path = folder / "metadata.parquet"
    rows = [{"file_name": "a.png", "text": f"number {number}"} for number in range(300)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 0x55,)) + whole[place + 1 :])
        found = tables_of(folder)
        assert found.used or found.rejected
    path.write_bytes(whole[: len(whole) // 2])
    assert tables_of(folder).rejected


def test_a_csv_row_with_a_comma_too_many_is_refused(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\na.png,a cat, sitting\nb.png\ndeep/d.png,good\n")
    account = account_of(folder)
    assert [remark.name for remark in account.rejected] == ["metadata.csv, line 2", "metadata.csv, line 3"]
    assert "quotes" in account.rejected[0].reason
    assert captions_of(account)["deep/d.png"] == ("good",)


def test_tables_with_byte_order_marks(folder: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        (folder / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "über"}\n'.encode(encoding))
        assert captions_of(account_of(folder))["a.png"] == ("über",)
        (folder / "metadata.jsonl").unlink()
        (folder / "metadata.csv").write_bytes("file_name,text\na.png,über\n".encode(encoding))
        assert captions_of(account_of(folder))["a.png"] == ("über",)
        (folder / "metadata.csv").unlink()


def test_the_column_may_be_named(folder: Path) -> None:
    rows = [{"file_name": "a.png", "text": "no", "title": "yes"}]
    write_table(folder / "metadata.csv", rows)
    assert captions_of(account_of(folder, caption_column="title"))["a.png"] == ("yes",)
    account = account_of(folder, caption_column="tilte")
    assert "file_name, text, title" in account.rejected[0].reason


def test_a_table_without_captions_is_passed_over_with_a_warning(folder: Path) -> None:
    write_table(folder / "metadata.csv", [{"file_name": "a.png", "label": "7"}])
    account = account_of(folder)
    assert [remark.name for remark in account.ignored] == ["metadata.csv"]
    assert any("caption_column" in remark.reason for remark in account.warnings)


def test_control_characters_are_taken_out_and_told(folder: Path) -> None:
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "a\u202eb\x1b[31mc\ud800"}])
    account = account_of(folder)
    assert captions_of(account)["a.png"] == ("ab[31mc",)
    assert any("control characters" in remark.reason for remark in account.warnings)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_are_no_utf_8(folder: Path, paint: Painter) -> None:
    odd = folder / "caf\udce9.png"
    odd.write_bytes((folder / "a.png").read_bytes())
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "caf\udce9.png", "text": "odd"}])
    assert ("odd",) in captions_of(account_of(folder)).values()


def test_a_flood_of_bad_rows_is_counted_not_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "_MOST_REMARKS", 10)
    write_jsonl(folder / "metadata.jsonl", [{"file_name": f"{number}.png", "text": "x"} for number in range(500)])
    found = tables_of(folder)
    assert len(found.rejected) == 11
    assert found.rejected[-1][1].startswith("490 more rows")


def test_a_flood_of_rows_for_one_picture_ends(folder: Path) -> None:
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "text": f"{number}"} for number in range(5000)])
    found = tables_of(folder)
    assert len(found.captions_of("a.png") or ()) == 1000
    assert "more than 1,000 that name a.png" in found.rejected[0][1]
    assert "more rows cannot be used" in found.rejected[-1][1]


def test_a_table_that_is_too_large_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MOST_BYTES", 30)
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "x" * 30}])
    assert "larger than" in tables_of(folder).rejected[0][1]


def test_a_pipe_called_metadata_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "metadata.jsonl")
    account = account_of(folder)
    assert [remark.name for remark in account.rejected] == ["metadata.jsonl"]


lines = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1)


@given(st.dictionaries(st.text(), st.lists(lines)))
@settings(max_examples=50, deadline=None)
def test_the_store_gives_back_what_was_put(captions: dict[str, list[str]]) -> None:
    store = CaptionStore()
    for name, own in captions.items():
        store.put(name, own)
    assert len(store) == len(captions)
    for name, own in captions.items():
        assert name in store
        assert store.get(name) == tuple(dict.fromkeys(own))
        store.add(name, ["more"])
        assert store.rows_of(name) == 2
        assert store.get(name) == tuple(dict.fromkeys((*own, "more")))
        store.put(name, own)
        assert store.get(name) == tuple(dict.fromkeys(own))
    assert store.get("another" + "".join(captions)) is None


cells = st.text(ascii_signs + "äß猫\u2028🙂", max_size=30)


@given(st.lists(cells, min_size=4, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_all_three_forms(folder: Path, texts: list[str]) -> None:
    names = ("a.png", "b.png", "deep/d.png", "deep/er/c.png")
    seen: list[list[tuple[str, ...] | None]] = []
    for suffix in tables.SUFFIXES:
        path = folder / f"metadata{suffix}"
        write_table(path, [{"file_name": name, "text": text} for name, text in zip(names, texts, strict=True)])
        found = tables_of(folder)
        path.unlink()
        assert not found.rejected
        seen.append([found.captions_of(name) for name in names])
    assert seen[0] == seen[1] == seen[2]
