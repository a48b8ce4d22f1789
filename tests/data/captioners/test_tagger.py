"""The WD tagger: its preparation of pictures, its rules, and the whole path on a small graph."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.cli.main import run
from trainer.core.errors import TrainerError, WeightsError
from trainer.data.captioners.tagger import Tag, WdTagger, matches, prepare, read_table

CPU = torch.device("cpu")
TABLE = (
    Tag("general", "rating"),
    Tag("explicit", "rating"),
    Tag("1girl", "general"),
    Tag("long_hair", "general"),
    Tag("^_^", "general"),
    Tag("red_background", "general"),
    Tag("saber_(fate)", "character"),
    Tag("touhou", "copyright"),
)
SURE = (0.2, 0.7, 0.5, 0.9, 0.6, 0.36, 0.86, 0.4)


def text(**settings: Any) -> str:
    return WdTagger(**settings).text_of(TABLE, np.array(SURE, dtype=np.float32))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "saber (fate), long hair, ^_^, 1girl, red background"),
        ({"threshold": 0.5}, "saber (fate), long hair, ^_^, 1girl"),
        ({"character_threshold": 0.9}, "long hair, ^_^, 1girl, red background"),
        ({"order": "table"}, "saber (fate), 1girl, long hair, ^_^, red background"),
        ({"categories": ("general", "rating")}, "long hair, ^_^, 1girl, red background, explicit"),
        ({"categories": ("rating", "copyright", "character")}, "explicit, touhou, saber (fate)"),
        ({"always_first": ("1girl", "solo", "long hair")}, "1girl, long hair, saber (fate), ^_^, red background"),
        ({"banned": ("1girl", "*background")}, "saber (fate), long hair, ^_^"),
        ({"banned": ("Long hair", "saber*")}, "^_^, 1girl, red background"),
        ({"banned": ("*_*",)}, "1girl"),
        ({"underscores": True}, "saber_(fate), long_hair, ^_^, 1girl, red_background"),
        ({"escape_parentheses": True}, r"saber \(fate\), long hair, ^_^, 1girl, red background"),
        ({"threshold": 1.0, "character_threshold": 1.0}, ""),
    ],
)
def test_rules(settings: dict[str, Any], expected: str) -> None:
    assert text(**settings) == expected


@pytest.mark.parametrize("face", ["0_0", "(o)_(o)", "+_+", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", ">_o", "||_||"])
def test_faces_keep_their_mouths(face: str) -> None:
    tags = (Tag(face, "general"), Tag("looking_at_viewer", "general"))
    assert WdTagger().text_of(tags, np.array([0.9, 0.8])) == f"{face}, looking at viewer"


@given(st.text("ab_*", max_size=6), st.text("ab_", max_size=6))
def test_a_star_stands_for_anything_at_its_end(pattern: str, name: str) -> None:
    """The same as the shell's patterns, where stars stand at the ends only."""
    from fnmatch import fnmatchcase

    core = pattern.strip("*")
    if core and "*" not in core:
        assert matches(name, pattern) == fnmatchcase(name, pattern)


def test_a_picture_is_padded_with_white_to_a_square_and_its_colours_are_turned_round() -> None:
    picture = Image.new("RGB", (4, 2), (10, 20, 30))
    prepared = prepare(picture, 4)
    assert prepared.shape == (4, 4, 3)
    assert prepared.dtype == np.float32
    assert (prepared[0] == 255).all()
    assert (prepared[3] == 255).all()
    assert (prepared[1:3] == [30, 20, 10]).all()


def test_a_picture_is_resized_after_padding_by_a_bicubic_filter() -> None:
    picture = Image.radial_gradient("L").resize((40, 24)).convert("RGB")
    square = Image.new("RGB", (40, 40), "white")
    square.paste(picture, (0, 8))
    expected = np.asarray(square.resize((16, 16), Image.Resampling.BICUBIC))[:, :, ::-1]
    assert (prepare(picture, 16) == expected).all()


def test_from_the_command_line_to_the_files(gallery: Path, tagger_folder: Path, small_tagger: Any) -> None:
    """One colour a picture: the tags follow from the graph's numbers."""
    Image.new("RGB", (20, 20), (200, 40, 90)).save(gallery / "plain.png")
    words = ["caption", str(gallery), "--captioner", "wd_tagger", f"weights={tagger_folder}", "batch=3"]
    assert run([*words, "character_threshold=0.5", "categories=[character, general]"]) == 0
    written = (gallery / "plain.txt").read_text(encoding="utf-8").strip().split(", ")
    sure = small_tagger.probabilities(blue=90, green=40, red=200)
    category = dict(small_tagger.tags)
    wanted = [
        name
        for number, least in ((4, 0.5), (0, 0.35))
        for name in sorted((n for n in sure if category[n] == number), key=lambda n: -sure[n])
        if sure[name] >= least
    ]
    assert written == [name if name == "^_^" else name.replace("_", " ") for name in wanted]
    assert len(list(gallery.glob("*.txt"))) == 4


def test_a_graph_for_a_fixed_number_of_pictures_gives_the_same(
    tagger_folder: Path, small_tagger: Any, tmp_path: Path
) -> None:
    pictures = [Image.new("RGB", (9, 9), (shade, 255 - shade, 128)) for shade in (0, 60, 120, 180, 240)]
    names = ["a"] * 5
    settings: dict[str, Any] = {"threshold": 0.4, "categories": ("general", "character", "rating")}
    free = WdTagger(weights=str(tagger_folder), **settings).open(CPU)(pictures, names)
    fixed = small_tagger.write(tmp_path / "fixed", batch=2)
    assert WdTagger(weights=str(fixed), **settings).open(CPU)(pictures, names) == free
    assert len(set(free)) > 1


def test_a_model_of_another_form_is_refused(small_tagger: Any, tmp_path: Path) -> None:
    other = small_tagger.write(tmp_path / "other", channels_last=False)
    with pytest.raises(WeightsError, match="no WD tagger"):
        WdTagger(weights=str(other)).open(CPU)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.onnx", b"no graph", "cannot be loaded"),
        ("selected_tags.csv", b"id,word\n1,a\n", "no column"),
        ("selected_tags.csv", b"tag_id,name,category\n0,solo,0\n", "knows 8 tags, but its table lists 1"),
        ("selected_tags.csv", b"\xff\xfe", "no table of tags"),
    ],
)
def test_broken_files_are_one_message(small_tagger: Any, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    folder = small_tagger.write(tmp_path / "broken")
    (folder / name).write_bytes(content)
    with pytest.raises(WeightsError, match=says) as caught:
        WdTagger(weights=str(folder)).open(CPU)
    assert caught.value.mend


def test_a_missing_table_is_named(small_tagger: Any, tmp_path: Path) -> None:
    folder = small_tagger.write(tmp_path / "half")
    (folder / "selected_tags.csv").unlink()
    with pytest.raises(WeightsError, match=r"selected_tags\.csv"):
        WdTagger(weights=str(folder)).open(CPU)


def test_without_onnxruntime_it_is_said_how_to_get_it(tagger_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TrainerError, match="needs onnxruntime") as caught:
        WdTagger(weights=str(tagger_folder)).open(CPU)
    assert "pip install" in str(caught.value.mend)


def test_a_table_keeps_its_order_and_its_categories(tagger_folder: Path, small_tagger: Any) -> None:
    table = read_table(tagger_folder / "selected_tags.csv")
    assert [tag.name for tag in table] == [name for name, _ in small_tagger.tags]
    assert {tag.name: tag.category for tag in table}["saber_(fate)"] == "character"
