"""Sizes that are large enough, names that nobody else has, and what is refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.core.errors import DataError
from trainer.data.decoding import ImageLimits
from trainer.data.example import Size
from trainer.small_pictures.searching import Search, enough, search

SIDE = st.integers(1, 20_000)
Paint = Callable[..., Path]


@given(SIDE, SIDE, st.integers(1, 8192))
def test_the_size_is_the_smallest_of_its_shape_that_is_enough(width: int, height: int, least: int) -> None:
    size = enough(Size(width, height), least)
    assert size.width * size.height >= least * least
    for side, own, other in ((size.width, width, height), (size.height, height, width)):
        assert (side - 1) ** 2 * other < least * least * own <= side**2 * other


def test_sizes_that_come_out_even_are_exact() -> None:
    assert enough(Size(256, 256), 1024) == (1024, 1024)
    assert enough(Size(300, 1200), 1200) == (600, 2400)


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    def make(name: str, size: tuple[int, int] = (40, 40), caption: str | None = None) -> Path:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(name), 0, 0)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return make


def looked(tmp_path: Path, before: dict[str, str] | None = None, least: int = 64) -> Search:
    return search(tmp_path / "in", tmp_path / "out", least, limits=ImageLimits(), before=before or {})


def places(found: Search) -> dict[str, str]:
    return {wish.picture.relative: wish.to for wish in (*found.small, *found.large)}


def test_two_pictures_of_one_name_get_two_places_and_both_the_caption(paint: Paint, tmp_path: Path) -> None:
    paint("a.jpg", caption="words")
    paint("a.png")
    paint("a.webp", (80, 80))
    paint("b.bmp")
    paint("b.png", (80, 80))
    paint("c.jpg")
    paint("c.png")
    paint("c_png.gif")  # whose captions would bear the name that is tried first
    found = looked(tmp_path)
    assert places(found) == {
        "a.jpg": "a.png",
        "a.png": "a_png.png",
        "a.webp": "a.webp",
        "b.bmp": "b_bmp.png",
        "b.png": "b.png",
        "c.jpg": "c.png",
        "c.png": "c_png_2.png",
        "c_png.gif": "c_png.png",
    }
    beside = {wish.picture.relative: [to for _, to in wish.beside] for wish in found.small}
    assert (beside["a.jpg"], beside["a.png"], beside["b.bmp"]) == (["a.txt"], ["a_png.txt"], [])


def test_a_place_that_was_given_once_stays(paint: Paint, tmp_path: Path) -> None:
    paint("a.jpg")
    paint("a.gif")
    assert places(looked(tmp_path)) == {"a.gif": "a.png", "a.jpg": "a_jpg.png"}
    assert places(looked(tmp_path, {"a.jpg": "a.png"})) == {"a.gif": "a_gif.png", "a.jpg": "a.png"}


def test_masks_and_every_caption_file_go_along(paint: Paint, tmp_path: Path) -> None:
    paint("x/a.jpg", caption="one").with_suffix(".caption").write_text("two", encoding="utf-8")
    paint("x/a-masklabel.png")
    paint("masks/b.png")
    paint("b.jpg")
    found = looked(tmp_path)
    beside = {wish.picture.relative: [to for _, to in wish.beside] for wish in found.small}
    assert beside == {"b.jpg": ["masks/b.png"], "x/a.jpg": ["x/a.txt", "x/a.caption", "x/a-masklabel.png"]}


def test_words_of_a_table_are_kept(paint: Paint, tmp_path: Path) -> None:
    paint("a.png")
    paint("b.png", caption="own")
    table = '{"file_name": "a.png", "text": "from the table"}\n{"file_name": "b.png", "text": "not used"}\n'
    (tmp_path / "in" / "metadata.jsonl").write_text(table, encoding="utf-8")
    words = {wish.picture.relative: (wish.words, wish.words_to) for wish in looked(tmp_path).small}
    assert words == {"a.png": (("from the table",), "a.txt"), "b.png": ((), "b.txt")}


def test_what_cannot_be_enlarged_is_refused_by_name(paint: Paint, tmp_path: Path) -> None:
    paint("tiny.png", (31, 200))
    paint("least.png", (32, 32))
    paint("large.png", (64, 64))
    broken = paint("broken.png")
    broken.write_bytes(broken.read_bytes()[:60])
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40)).save(secret)
    (tmp_path / "in" / "link.png").symlink_to(secret)
    (tmp_path / "in" / "camera.heic").write_bytes(b"heic")
    found = looked(tmp_path)
    assert [wish.picture.name for wish in found.small] == ["least.png"]
    assert [wish.picture.name for wish in found.large] == ["large.png"]
    refused = dict(found.refused)
    assert sorted(refused) == ["broken.png", "camera.heic", "link.png", "tiny.png"]
    assert "31 x 200" in refused["tiny.png"]
    assert "leads out of the folder" in refused["link.png"]


def test_no_place_leads_out_of_the_folder(paint: Paint, tmp_path: Path) -> None:
    paint("sub/a.png")
    paint("b.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    found = looked(tmp_path, {"b.png": "../b.png"})
    assert found.small == []
    assert sorted(name for name, _ in found.refused) == ["b.png", "sub/a.png"]


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="holds no pictures"):
        looked(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        search(tmp_path / "none", tmp_path / "out", 64, limits=ImageLimits(), before={})
