"""Rows of Hugging Face data sets: stored bytes as they are, captions as they stand, no path that leads out."""

import io
import json
import os
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

import datasets
from trainer.core.errors import DataError
from trainer.data.account import Account, Draft
from trainer.data.decoding import ImageLimits
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan
from trainer.data.sources import base, hub, huggingface
from trainer.data.sources.huggingface import HuggingFace
from trainer.data.sources.row_files import split_of

LIMITS = ImageLimits()


def picture(shade: int = 0, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 100, 200)).save(stream, kind)
    return stream.getvalue()


def dataset(captions: list[Any], column: str = "text", **columns: list[Any]) -> datasets.Dataset:
    rows = {"image": [{"bytes": picture(n), "path": None} for n in range(len(captions))], column: captions, **columns}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))


def account_of(path: Path | str, **settings: object) -> Account:
    return scan([HuggingFace.model_validate({"path": str(path), **settings})], LIMITS)


def captions_of(account: Account) -> dict[str, tuple[str, ...]]:
    return {example.name: example.captions for example in account.accepted}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the library writes goes into a folder of the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture(params=["saved", "splits", "parquet", "folder", "pattern"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same four rows in each form."""
    data = dataset(["one", "two\nlines", "", None])
    place = tmp_path / "data"
    if request.param == "saved":
        data.save_to_disk(str(place))
    elif request.param == "splits":
        datasets.DatasetDict({"train": data}).save_to_disk(str(place))
    else:
        place.mkdir()
        data.select(range(2)).to_parquet(str(place / "train-00000-of-00002.parquet"))
        data.select(range(2, 4)).to_parquet(str(place / "train-00001-of-00002.parquet"))
    if request.param == "parquet":
        data.to_parquet(str(tmp_path / "all.parquet"))
        return str(tmp_path / "all.parquet")
    return str(place / "*.parquet") if request.param == "pattern" else str(place)


def test_every_form_gives_the_same_rows(stored: str) -> None:
    account = account_of(stored)
    assert captions_of(account) == {"row 0": ("one",), "row 1": ("two", "lines"), "row 2": (), "row 3": ()}
    assert account.found == 4
    reasons = [(remark.name, remark.reason) for remark in account.warnings]
    assert ("row 2", "its caption is empty") in reasons
    assert ("row 3", "has no caption") in reasons
    opened = OpenSources([HuggingFace(path=stored)])
    for number, example in enumerate(account.accepted):
        assert opened.content(example, LIMITS) == picture(number)
        assert opened.where(example).endswith(f"row {number}")


def test_the_bytes_are_decoded_by_us_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(["a"]).cast_column("image", datasets.Image(decode=True)).save_to_disk(str(tmp_path / "data"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the library decoded a picture")

    monkeypatch.setattr(datasets.Image, "decode_example", never)
    assert len(account_of(tmp_path / "data").accepted) == 1


def test_lists_of_captions(tmp_path: Path) -> None:
    dataset([["a", "b"], [], None], "captions").save_to_disk(str(tmp_path / "data"))
    assert list(captions_of(account_of(tmp_path / "data")).values()) == [("a", "b"), (), ()]


def test_captions_that_are_no_text_are_refused(tmp_path: Path) -> None:
    dataset([1, 2]).save_to_disk(str(tmp_path / "data"))
    account = account_of(tmp_path / "data")
    assert [remark.name for remark in account.rejected] == ["row 0", "row 1"]
    assert "a number" in account.rejected[0].reason


def test_columns_are_guessed_or_named(tmp_path: Path) -> None:
    pictures = [{"bytes": picture(9), "path": None}]
    data = dataset(["a"], other=pictures, prompt=["b"], title=["c"]).cast_column("other", datasets.Image(decode=False))
    data.save_to_disk(str(tmp_path / "data"))
    with pytest.raises(DataError, match="Several columns hold pictures: image, other"):
        account_of(tmp_path / "data")
    with pytest.raises(DataError, match="Several columns may hold the captions: text, prompt"):
        account_of(tmp_path / "data", image_column="other")
    account = account_of(tmp_path / "data", image_column="other", caption_column="title")
    assert captions_of(account) == {"row 0": ("c",)}
    assert OpenSources(
        [HuggingFace(path=str(tmp_path / "data"), image_column="other", caption_column="title")]
    ).content(account.accepted[0], LIMITS) == picture(9)
    with pytest.raises(DataError, match="no column 'imgae'") as caught:
        account_of(tmp_path / "data", image_column="imgae")
    assert caught.value.mend is not None
    assert "image, text, other, prompt, title" in caught.value.mend
    with pytest.raises(DataError, match="'title' holds no pictures"):
        account_of(tmp_path / "data", image_column="title")


def test_masks_in_a_column(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (16, 16), 255).save(stream, "PNG")
    masks = [{"bytes": stream.getvalue(), "path": None}, None]
    data = dataset(["a", "b"], mask=masks).cast_column("mask", datasets.Image(decode=False))
    data.save_to_disk(str(tmp_path / "data"))
    settings = {"path": str(tmp_path / "data"), "mask_column": "mask", "masks": "files"}
    account = account_of(**settings)
    assert [bool(example.mask_key) for example in account.accepted] == [True, False]
    opened = OpenSources([HuggingFace.model_validate(settings)])
    example = account.accepted[0]
    got = opened.mask(example, opened.picture(example, LIMITS), LIMITS)
    assert got is not None
    assert got.size == (16, 16)


def test_parquet_without_the_librarys_own_types(tmp_path: Path) -> None:
    table = pyarrow.table({"jpg": [picture(1, kind="JPEG"), None, b""], "caption": ["a", "b", "c"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    account = account_of(tmp_path / "a.parquet")
    assert captions_of(account) == {"row 0": ("a",)}
    assert [(remark.name, remark.reason) for remark in account.rejected] == [
        ("row 1", "This row holds no picture."),
        ("row 2", "This row holds no picture."),
    ]
    assert account.found == 3


def test_pictures_that_are_none_are_refused_by_row(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"image": [{"bytes": b"no picture", "path": None}, None], "text": ["a", "b"]})
    data.cast_column("image", datasets.Image(decode=False)).save_to_disk(str(tmp_path / "data"))
    account = account_of(tmp_path / "data")
    assert [remark.name for remark in account.rejected] == ["row 1", "row 0"]


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "link.png", "file:///etc/passwd", "a/../../secret.png"]
)
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    folder = tmp_path / "data"
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("text", pyarrow.string()),
        ]
    )
    rows = [{"image": {"bytes": None, "path": one}, "text": "x"} for one in ("in/side.png", path)]
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), folder / "a.parquet")
    (folder / "in").mkdir()
    (folder / "in" / "side.png").write_bytes(picture(1))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    account = account_of(folder)
    assert captions_of(account) == {"row 0": ("x",)}
    assert "row 1" in [remark.name for remark in account.rejected]


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "sub/../../secret.arrow", "link.arrow"])
def test_a_saved_data_set_opens_no_file_outside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    dataset(["a"]).save_to_disk(str(folder))
    (folder / "data-00000-of-00001.arrow").rename(tmp_path / "secret.arrow")
    (folder / "link.arrow").symlink_to(tmp_path / "secret.arrow")
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"leaves its folder|leads out"):
        account_of(folder)


def test_a_saved_dictionary_opens_no_folder_outside(tmp_path: Path) -> None:
    dataset(["a"]).save_to_disk(str(tmp_path / "secret"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["../secret"]}')
    with pytest.raises(DataError, match="leaves its folder"):
        account_of(tmp_path / "data")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", "{"), ("state.json", "[]"), ("state.json", "{}"), ("state.json", '{"_data_files": 7}'),
        ("state.json", '{"_data_files": [{}]}'), ("state.json", "[" * 100_000),
        ("dataset_info.json", "{"), ("dataset_info.json", '{"features": {"image": {"_type": "os.system"}}}'),
        ("dataset_info.json", '{"features": 7}'), ("data-00000-of-00001.arrow", ""),
        ("data-00000-of-00001.arrow", "no arrow"),
    ],
)  # fmt: skip
def test_damaged_saved_data_sets_are_one_message(tmp_path: Path, file: str, content: str) -> None:
    folder = tmp_path / "data"
    dataset(["a"]).save_to_disk(str(folder))
    (folder / file).write_text(content)
    with pytest.raises(DataError):
        account_of(folder)


def test_offsets_that_lie_are_found_before_they_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    dataset(["one", "two", "three"]).save_to_disk(str(folder))
    path = folder / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 3, 6, 11))
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, b"".join(n.to_bytes(4, "little") for n in (0, 3, 6, 1 << 30))))
    with pytest.raises(DataError, match="cannot be read"):
        account_of(folder)


def test_splits(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": dataset(["a"]), "test": dataset(["b", "c"])}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    dataset(["a"]).to_parquet(str(tmp_path / "files" / "train-00000-of-00001.parquet"))
    dataset(["b", "c"]).to_parquet(str(tmp_path / "files" / "test-00000-of-00001.parquet"))
    (tmp_path / "files" / "README.md").write_text("# read")
    for place in ("saved", "files"):
        with pytest.raises(DataError, match="several splits") as caught:
            account_of(tmp_path / place)
        assert caught.value.mend is not None
        assert "train" in caught.value.mend
        with pytest.raises(DataError, match="no split 'tets'"):
            account_of(tmp_path / place, split="tets")
        assert len(account_of(tmp_path / place, split="test").accepted) == 2
    account = account_of(tmp_path / "files", split="train")
    assert {remark.name: remark.reason for remark in account.ignored} == {
        "test-00000-of-00001.parquet": "not a part of the split",
        "README.md": "not a Parquet file",
    }


def test_split_names() -> None:
    assert split_of("data/train-00000-of-00002.parquet") == "train"
    assert split_of("data/train_sfw-00000-of-00002-0a1b.parquet") == "train_sfw"
    assert split_of("default/train/0000.parquet") == "train"
    assert split_of("validation.parquet") == "validation"
    assert split_of("training/cats.parquet") == ""


def test_a_parquet_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    dataset(["one"]).to_parquet(str(path))
    assert captions_of(account_of(path)) == {"row 0": ("one",)}
    times = path.stat()
    dataset(["two"]).to_parquet(str(path))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert captions_of(account_of(path)) == {"row 0": ("two",)}


def test_a_damaged_parquet_file_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    dataset(["one"] * 50).to_parquet(str(path))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read"):
        account_of(path)


def test_only_the_columns_that_are_used_are_copied(tmp_path: Path, own_cache: Path) -> None:
    table = pyarrow.table({"jpg": [picture(1)], "text": ["a"], "ballast": [os.urandom(1 << 20)]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert len(account_of(tmp_path / "a.parquet", image_column="jpg").accepted) == 1
    assert sum(file.stat().st_size for file in own_cache.rglob("*") if file.is_file()) < 1 << 19


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data set here"):
        account_of(tmp_path / "empty")
    with pytest.raises(DataError, match="no such files"):
        account_of(tmp_path / "*.parquet")
    dataset(["a"]).select([]).save_to_disk(str(tmp_path / "rowless"))
    with pytest.raises(DataError, match="no rows"):
        account_of(tmp_path / "rowless")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of the last change")
def test_stamps_name_the_row_and_change_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_STILL_MOVING", -(10**15))

    def stamps() -> list[str]:
        return [found.stamp for found in HuggingFace(path=str(tmp_path / "a.parquet")).open().list(Draft(0, "a"))]

    dataset(["a", "b"]).to_parquet(str(tmp_path / "a.parquet"))
    before = stamps()
    assert before == stamps()
    assert len(set(before)) == 2
    dataset(["a", "b"]).to_parquet(str(tmp_path / "a.parquet"))
    assert not set(before) & set(stamps())


class Hub:
    """A hub without a network: repositories are folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def dataset_info(self, name: str, revision: str | None = None) -> Any:
        self.asked.append(f"{name}@{revision}")
        repository = self.folder / name
        if not repository.is_dir():
            raise OSError("404: there is no such repository")
        files = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
        siblings = [type("File", (), {"rfilename": file}) for file in sorted(files)]
        return type("Info", (), {"sha": "a" * 40, "siblings": siblings})

    def snapshot_download(self, name: str, *, local_dir: Path, allow_patterns: list[str], **kept: object) -> str:
        from huggingface_hub.utils import filter_repo_objects

        assert kept == {"repo_type": "dataset", "revision": "a" * 40}
        files = [file.rfilename for file in self.dataset_info(name).siblings]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (local_dir / file).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / file).write_bytes((self.folder / name / file).read_bytes())
        return str(local_dir)


@pytest.fixture
def a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    one = Hub(tmp_path / "hub")
    assets = tmp_path / "assets"

    def cached_assets_path(_: str, namespace: str, subfolder: str) -> Path:
        folder = assets / namespace.replace("/", "--") / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", one.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "cached_assets_path", cached_assets_path)
    monkeypatch.chdir(tmp_path)
    return one


def test_a_name_on_the_hub(a_hub: Hub) -> None:
    repository = a_hub.folder / "owner" / "cats"
    repository.mkdir(parents=True)
    dataset(["one"]).to_parquet(str(repository / "train-00000-of-00001.parquet"))
    (repository / "cats.py").write_text("raise SystemExit")
    account = account_of("owner/cats")
    assert captions_of(account) == {"row 0": ("one",)}
    assert any(f"revision: {'a' * 40}" in remark.reason for remark in account.warnings)
    assert account.found == 1  # the script was not even downloaded
    a_hub.asked.clear()
    pinned = account_of("owner/cats", revision="a" * 40)
    assert not a_hub.asked  # what is there needs no network
    assert not pinned.warnings


def test_a_repository_of_pictures(a_hub: Hub) -> None:
    repository = a_hub.folder / "owner" / "dogs"
    (repository / "train").mkdir(parents=True)
    (repository / "train" / "a.png").write_bytes(picture(1))
    (repository / "train" / "b [1].png").write_bytes(picture(2))
    (repository / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}\n')
    (repository / "loader.py").write_text("raise SystemExit")
    account = account_of("owner/dogs", split="train")
    assert captions_of(account) == {"a.png": ("a dog",), "b [1].png": ()}


def test_repositories_of_other_kinds_are_refused(a_hub: Hub) -> None:
    repository = a_hub.folder / "owner" / "script"
    repository.mkdir(parents=True)
    (repository / "script.py").write_text("raise SystemExit")
    (repository / "data.pkl").write_bytes(b"x")
    with pytest.raises(DataError, match=r"but \.pkl, \.py"):
        account_of("owner/script")
    with pytest.raises(DataError, match="404"):
        account_of("owner/missing")


def test_a_mistyped_path_is_no_question_to_the_hub(a_hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for path in ("pictures/catz", "./owner/cats", "missing", "owner/a.parquet", "/owner/cats", "a/b/c"):
        with pytest.raises(DataError, match="no such folder"):
            account_of(path)
    assert not a_hub.asked


def test_paths_ask_nothing_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def never(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(huggingface, "commit_of", never)
    monkeypatch.setattr(hub, "folder_of", never)
    dataset(["a"]).save_to_disk(str(tmp_path / "saved"))
    dataset(["a"]).to_parquet(str(tmp_path / "a.parquet"))
    assert len(account_of(tmp_path / "saved").accepted) == 1
    assert len(account_of(tmp_path / "a.parquet").accepted) == 1
