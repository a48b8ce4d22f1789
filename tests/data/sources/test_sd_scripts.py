"""sd-scripts' dataset configuration, as it stands: each key is followed, or said not to be."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel, TypeAdapter

from trainer.core.errors import DataError
from trainer.data.account import Account
from trainer.data.batches import DataSettings
from trainer.data.captions import CaptionRules
from trainer.data.decoding import ImageLimits
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan
from trainer.data.sources import AnySource
from trainer.data.sources.sd_options import OTHERWISE, EveryOption
from trainer.data.sources.sd_scripts import SdScripts
from trainer.data.sources.sd_subset import Listing, Subset

LIMITS = ImageLimits()
Painter = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a configuration; commands are run in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def write_it(text: str, name: str = "dataset.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_it


def subsets(path: Path, **settings: object) -> list[Subset]:
    parts = SdScripts.model_validate({"path": path, **settings}).parts()
    assert all(isinstance(part, Subset) for part in parts)
    return [part for part in parts if isinstance(part, Subset)]


def account_of(path: Path, **settings: object) -> Account:
    return scan(subsets(path, **settings), LIMITS)


THREE_LEVELS = """
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = 'hoge'
  class_tokens = 'hoge girl'

  [[datasets.subsets]]
  image_dir = 'fuga'
  class_tokens = 'fuga boy'
  keep_tokens = 3
  num_repeats = 10
  flip_aug = true

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'reg'
  class_tokens = 'human'
  keep_tokens = 1
  alpha_mask = true

[[datasets]]
resolution = [768, 768]
caption_extension = '.caption'

  [[datasets.subsets]]
  image_dir = 'piyo'
"""


def test_the_nearest_of_three_levels_wins(write: Callable[[str], Path]) -> None:
    parts = subsets(write(THREE_LEVELS))
    assert [str(part.path) for part in parts] == ["hoge", "fuga", "reg", "piyo"]
    assert [part.captions.keep_tags for part in parts if part.captions] == [2, 3, 1, 1]
    assert all(part.captions and part.captions.shuffle_tags for part in parts)
    assert [part.resolution for part in parts] == [512, 512, 512, 768]
    assert [part.repeats for part in parts] == [1, 10, 1, 1]
    assert [part.flip for part in parts] == [None, True, None, None]
    assert [part.regularisation for part in parts] == [False, False, True, False]
    assert [part.masks for part in parts] == ["none", "none", "alpha", "none"]
    assert [part.class_words for part in parts] == ["hoge girl", "fuga boy", "human", ""]
    assert [part.caption_suffixes for part in parts] == [(".txt",)] * 3 + [(".caption",)]
    assert not any(part.recursive or part.numbered_folders for part in parts)


def test_every_caption_key_has_its_rule(write: Callable[[str], Path]) -> None:
    path = write("""
        [[datasets]]
        [[datasets.subsets]]
        image_dir = "a"
        shuffle_caption = true
        keep_tokens = 2
        keep_tokens_separator = "|||"
        caption_separator = ";"
        secondary_separator = ";;;"
        enable_wildcard = true
        caption_prefix = "1girl |||"
        caption_suffix = ", end"
        caption_dropout_rate = 0.1
        caption_tag_dropout_rate = 0.2
        caption_dropout_every_n_epochs = 3
        token_warmup_min = 4
    """)
    (part,) = subsets(path)
    assert part.captions == CaptionRules(
        shuffle_tags=True,
        keep_tags=2,
        keep_separator="|||",
        separator=";",
        secondary_separator=";;;",
        wildcards=True,
        several="choose",
        prefix="1girl |||",
        suffix=", end",
        dropout=0.1,
        tag_dropout=0.2,
        drop_every=3,
        warmup_tags=4,
    )
    assert part.captions is not None
    assert part.captions.model_fields_set == {
        *("shuffle_tags", "keep_tags", "keep_separator", "separator", "secondary_separator", "wildcards", "several"),
        *("prefix", "suffix", "dropout", "tag_dropout", "drop_every", "warmup_tags"),
    }


def test_what_the_file_does_not_say_the_source_says(write: Callable[[str], Path]) -> None:
    path = write("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 3\nkeep_tokens = 1")
    settings = {
        "repeats": 2, "weight": 0.5, "held_out": True, "resolution": 640, "flip": True, "masks": "alpha",
        "captions": {"trigger": "zwx", "keep_tags": 7},
    }  # fmt: skip
    (part,) = subsets(path, **settings)
    assert (part.repeats, part.weight, part.held_out) == (6, 0.5, True)
    assert (part.resolution, part.flip, part.masks) == (640, True, "alpha")
    assert part.captions == CaptionRules(trigger="zwx", keep_tags=1)
    (plain,) = subsets(write("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'"))
    assert plain.captions is None
    assert plain.resolution is None
    assert plain.flip is None
    assert not plain.notes()


VALUES = {
    "batch_size": "4", "enable_bucket": "false", "min_bucket_reso": "256", "max_bucket_reso": "1024",
    "bucket_reso_steps": "64", "bucket_no_upscale": "true", "network_multiplier": "0.5", "validation_split": "0.1",
    "validation_seed": "1", "skip_image_resolution": "768", "token_warmup_step": "100", "color_aug": "true",
    "random_crop": "true", "face_crop_aug_range": "[1.0, 3.0]", "resize_interpolation": "'area'", "cache_info": "true",
    "custom_attributes": "{a = 1}", "conditioning_data_dir": "'masks'",
}  # fmt: skip


def test_each_key_without_a_setting_is_known_to_these_tests() -> None:
    assert set(VALUES) == set(OTHERWISE)
    assert set(OTHERWISE) <= set(EveryOption.model_fields)


def test_every_setting_that_is_advised_exists() -> None:
    advised = {path for entry in OTHERWISE.values() for path in re.findall(r"data\.([a-z_.]+[a-z_])", entry.advice)}
    assert len(advised) >= 5
    for path in advised:
        kind: type[BaseModel] = DataSettings
        *rooms, last = path.split(".")
        for room in rooms:
            kind = type(kind.model_fields[room].default)
        assert last in kind.model_fields, path


@pytest.mark.parametrize("key", VALUES)
def test_a_key_that_is_not_followed_is_said_with_what_to_write(write: Callable[[str], Path], key: str) -> None:
    line = f"{key} = {VALUES[key]}\n"
    on_dataset = key not in ("conditioning_data_dir",)
    path = write(
        "[[datasets]]\n" + (line if on_dataset else "") + "[[datasets.subsets]]\nimage_dir = 'a'\n"
        + ("" if on_dataset else line)
    )  # fmt: skip
    (part,) = subsets(path)
    assert [note for note in part.notes() if note.startswith(f"{key} ") and OTHERWISE[key].advice in note]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeat = 1", "Did you mean num_repeats?"),
        ("[general]\nshufle_caption = true", "Did you mean shuffle_caption?"),
        ("[[datasets]]\nqwertyuiop = 1", "no such key"),
        ("[[datasets]]\nimage_dir = 'a'", "Write it under [[datasets.subsets]]"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nresolution = 512", "[[datasets]] or [general]"),
        ("[[dataset]]\n", "The tables are"),
        ("[datasets]\n", "two brackets"),
        ("[[datasets]]\nsubsets = 7", "two brackets"),
        ("general = 7", "Write [general]"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 7", "image_dir cannot be 7"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 'x'", "num_repeats cannot be 'x'"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nflip_aug = 1", "flip_aug cannot be 1"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\ncaption_dropout_rate = 1.5", "cannot be 1.5"),
        ("[[datasets]]\nresolution = 0", "resolution cannot be 0"),
        ("[[datasets]]\nresolution = [1, 2, 3]", "resolution cannot be [1, 2, 3]"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\ncaption_extension = 'txt'", "with its dot"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\ncaption_separator = 'x'", "do not go together"),
        ("[[datasets]]\n[[datasets.subsets]]\nclass_tokens = 'a'", "no image_dir"),
        ("[[datasets]]", "names no subset"),
        ("", "names no subset"),
        ("[[datasets]\n", "cannot be read"),
        ("a = 1\na = 2", "cannot be read"),
        ("a = " + "[" * 50_000, "cannot be read"),
    ],
)
def test_mistakes_are_one_message(write: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        subsets(write(text))
    assert said in str(caught.value)
    assert "dataset.toml" in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        subsets(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes("# caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        subsets(tmp_path / "latin.toml")
    with pytest.raises(DataError, match="no regular file"):
        subsets(tmp_path)
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(DataError, match="larger than"):
        subsets(tmp_path / "large.toml")


def test_json_says_the_same_as_toml(write: Callable[..., Path]) -> None:
    subset = {"image_dir": "a", "num_repeats": 3}
    text = json.dumps({"general": {"keep_tokens": 2}, "datasets": [{"resolution": 512, "subsets": [subset]}]})
    (part,) = subsets(write(text, "dataset.json"))
    assert (part.repeats, part.resolution, part.captions) == (3, 512, CaptionRules(keep_tags=2))


def test_a_resolution_that_is_no_square_is_taken_as_its_area(write: Callable[[str], Path]) -> None:
    (part,) = subsets(write("[[datasets]]\nresolution = [512, 768]\n[[datasets.subsets]]\nimage_dir = 'a'"))
    assert part.resolution == 627
    assert any("area" in note for note in part.notes())


def test_folders_start_where_the_command_is_run_or_beside_the_file(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pictures'", "there/dataset.toml")
    (tmp_path / "there" / "pictures").mkdir()
    (part,) = subsets(path)
    assert part.path == tmp_path / "there" / "pictures"
    assert any("beside" in note for note in part.notes())
    (tmp_path / "pictures").mkdir()
    (part,) = subsets(path)
    assert part.path == Path("pictures")
    assert not part.notes()


def test_doubled_and_empty_subsets_are_passed_over_as_there(write: Callable[[str], Path]) -> None:
    one = "[[datasets.subsets]]\nimage_dir = 'a'\n"
    parts = subsets(
        write(f"[[datasets]]\n{one}{one}[[datasets.subsets]]\nimage_dir = 'b'\nnum_repeats = 0\n[[datasets]]\n{one}")
    )
    assert [str(part.path) for part in parts] == ["a", "a"]
    assert any("a stands twice" in note for note in parts[0].notes())
    assert any("b has num_repeats below 1" in note for note in parts[0].notes())


def test_subsets_read_their_folders(write: Callable[[str], Path], paint: Painter, tmp_path: Path) -> None:
    paint("a/1.png", shade=1, caption="one")
    paint("a/2.png", shade=2)
    paint("a/deeper/3.png", shade=3)
    paint("b/10_name/4.png", shade=4)
    paint("b/5.png", shade=5)
    path = write("""
        [[datasets]]
        color_aug = true
        [[datasets.subsets]]
        image_dir = "pictures/a"
        class_tokens = "zwx\\u202e girl"
        caption_extension = ".txt"
        num_repeats = 4
        [[datasets.subsets]]
        image_dir = "pictures/b"
        is_reg = true
    """)
    account = account_of(path, repeats=2)
    seen = {e.name: (e.source, e.captions, e.class_words, e.repeats, e.regularisation) for e in account.accepted}
    assert seen == {
        "1.png": (0, ("one",), "zwx girl", 8, False),
        "2.png": (0, (), "zwx girl", 8, False),
        "5.png": (1, (), "", 2, True),
    }
    assert {remark.name for remark in account.ignored} == {"deeper", "10_name"}
    assert account.found == 6
    warned = [(remark.name, remark.reason) for remark in account.warnings]
    assert [name for name, reason in warned if reason.startswith("color_aug")] == ["the settings"] * 2
    opened = OpenSources(subsets(path))
    assert opened.content(account.accepted[0], LIMITS) == (tmp_path / "pictures" / "a" / "1.png").read_bytes()


@pytest.fixture
def listed(write: Callable[..., Path], paint: Painter, tmp_path: Path) -> Path:
    """A fine-tuning subset with its metadata_file still to be written."""
    for shade, name in enumerate(("1.png", "2.webp", "3.png", "4.png")):
        paint(name, shade=shade, caption="not this one")
    return write("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pictures'\nmetadata_file = 'meta.json'")


def test_a_metadata_file_says_which_pictures_and_which_words(listed: Path, tmp_path: Path) -> None:
    entries = {
        "1": {"caption": "a cat", "tags": "cat, sofa"},
        "2.webp": {"caption": "first\nsecond", "tags": "t", "image_size": [64, 64]},
        str(tmp_path / "pictures" / "3.png"): {"tags": "only, tags"},
        "missing.png": {"caption": "x"},
        "../4.png": {"caption": "out"},
        "5": "no object",
        "6": {"caption": 7},
    }
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    account = account_of(listed)
    assert {example.name: example.captions for example in account.accepted} == {
        "1.png": ("a cat, cat, sofa",),
        "2.webp": ("first, t", "second, t"),
        "3.png": ("only, tags",),
    }
    assert {remark.name for remark in account.rejected} == {
        f"meta.json, {name}" for name in ("missing.png", "../4.png", "5", "6")
    }
    assert [remark.name for remark in account.captions] == ["meta.json"]
    assert "4.png" in {remark.name for remark in account.ignored if "not named in meta.json" in remark.reason}
    assert account.found == 3 + 4 + 1 + (1 + 4)  # accepted, rejected, the list, 4.png and the unused caption files


def test_a_metadata_file_of_lines(listed: Path, tmp_path: Path) -> None:
    listed.write_text(listed.read_text().replace("meta.json", "pictures/meta.jsonl"))
    lines = [
        '{"image_path": "1.png", "caption": "one", "tags": "t"}',
        "{broken",
        '{"caption": "x"}',
        '{"image_path": "3"}',
    ]
    (tmp_path / "pictures" / "meta.jsonl").write_text("\n".join(lines))
    account = account_of(listed)
    assert {example.name: example.captions for example in account.accepted} == {"1.png": ("one, t",), "3.png": ()}
    assert [remark.name for remark in account.rejected] == ["meta.jsonl, line 2", "meta.jsonl, line 3"]
    assert [remark.name for remark in account.captions] == ["meta.jsonl"]
    assert account.found == 8 + 1 + 2  # files in the folder, the list among them, and the two lines


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"1": {}', b'{"1": {},}', b'{"1" {}}', b"{1: {}}", b"\xff\xfe", b'{"1": ' + b"[" * 100_000],
)
def test_metadata_files_that_are_none(listed: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        account_of(listed)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(DataError, match="no such metadata_file"):
        account_of(listed)


def test_a_name_that_stands_twice(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"1": {"caption": "a"}, "1": {"caption": "b"}}')
    listing = Listing.read(tmp_path / "meta.json", tmp_path)
    assert listing.take("1.png") == ("b",)
    assert any("more than once" in reason for _, reason in listing.warnings)


def test_all_kinds_in_one_recipe(write: Callable[[str], Path], paint: Painter, tmp_path: Path) -> None:
    """Four kinds of sources, with repeats and weights of their own; every picture once, readable from where it lies."""
    import io
    import tarfile

    import datasets

    def stored(shade: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (32, 32), (shade, 0, 0)).save(stream, "PNG")
        return stream.getvalue()

    paint("plain/1.png", shade=1, caption="one")
    paint("subset/2.png", shade=2, caption="two")
    toml = write("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pictures/subset'\nnum_repeats = 3")
    with tarfile.open(tmp_path / "3.tar", "w") as archive:
        info = tarfile.TarInfo("3.png")
        info.size = len(stored(3))
        archive.addfile(info, io.BytesIO(stored(3)))
    rows = datasets.Dataset.from_dict({"image": [{"bytes": stored(4), "path": None}], "text": ["four"]})
    rows.cast_column("image", datasets.Image(decode=False)).save_to_disk(str(tmp_path / "4"))
    recipe = [
        {"kind": "webdataset", "path": str(tmp_path / "3.tar"), "weight": 0.5},
        {"kind": "sd_scripts", "path": str(toml), "repeats": 2},
        {"kind": "huggingface", "path": str(tmp_path / "4"), "repeats": 5, "held_out": True},
        {"kind": "folder", "path": "pictures/plain", "repeats": 7, "regularisation": True},
    ]
    sources = TypeAdapter(tuple[AnySource, ...]).validate_python(recipe)
    parts = [part for source in sources for part in source.parts()]
    account = scan(parts, LIMITS)
    assert account.found == len(account.accepted) + len(account.captions) == 6
    assert [(e.source, e.name, e.repeats, e.weight, e.held_out, e.regularisation) for e in account.accepted] == [
        (0, "3.tar/3.png", 1, 0.5, False, False),
        (1, "2.png", 6, 1.0, False, False),
        (2, "row 0", 5, 1.0, True, False),
        (3, "1.png", 7, 1.0, False, True),
    ]
    assert [example.caption for example in account.accepted] == ["", "two", "four", "one"]
    opened = OpenSources(parts)
    assert opened.content(account.accepted[0], LIMITS) == stored(3)
    assert opened.content(account.accepted[2], LIMITS) == stored(4)
    for example in account.accepted:
        assert opened.picture(example, LIMITS).image.size == tuple(example.size)
