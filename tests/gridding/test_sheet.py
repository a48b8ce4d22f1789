"""Sheets: what is where, readable, and never in memory as a whole."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.gridding.sheet import Row, write_sheet
from trainer.gridding.striped_png import write_striped
from trainer.sampling.labels import Lettering, letters_for


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("heights", [[1], [3, 1, 7], [64, 64]])
def test_stripes_make_one_picture(tmp_path: Path, heights: list[int]) -> None:
    stripes = [noise(23, height, place) for place, height in enumerate(heights)]
    write_striped(tmp_path / "a.png", 23, sum(heights), iter(stripes))
    with Image.open(tmp_path / "a.png") as file:
        file.verify()
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file), np.concatenate([np.asarray(stripe) for stripe in stripes]))


def test_one_row_of_pictures_is_asked_for_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def row(number: int) -> Row:
        def pictures() -> list[Image.Image]:
            alive.append(number)
            return [Image.new("RGB", (130, 130), (number * 20, 0, 0)) for _ in range(3)]

        return Row(label=f"row {number}", pictures=pictures)

    def stripes(rows: list[Row]) -> Iterator[Row]:
        yield from rows

    write_sheet(
        tmp_path / "s.png", "a title", ["one", "two", "three"], [*stripes([row(n) for n in range(5)])], (130, 130)
    )
    assert alive == [0, 1, 2, 3, 4]
    with Image.open(tmp_path / "s.png") as file:
        pixels = np.asarray(file.convert("RGB"))
    for number in range(1, 5):
        assert (pixels == (number * 20, 0, 0)).all(axis=2).sum() == 3 * 130 * 130


def test_small_pictures_are_enlarged_and_others_fitted(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (400, 200), "blue")]
    write_sheet(tmp_path / "s.png", "", ["a", "b"], [Row(label="r", pictures=lambda: pictures)], (64, 64))
    with Image.open(tmp_path / "s.png") as file:
        pixels = np.asarray(file.convert("RGB")).astype(int)
    assert (pixels == (255, 0, 0)).all(axis=2).sum() == 128 * 128
    assert (pixels == (0, 0, 255)).all(axis=2).sum() == 128 * 64


@pytest.mark.parametrize("width", [64, 512, 1024, 4000])
def test_letters_grow_with_the_pictures(width: int) -> None:
    letters = Lettering(letters_for(width))
    assert 13 <= letters.size <= 64
    prompt = (
        "a very long prompt, with (weights:1.2) and many tags, " * 6 + "一個沒有空格的很長很長很長很長很長的提示詞" * 3
    )
    lines = letters.wrapped(prompt, max(width, 160), 100)
    assert all(letters.width(line) <= max(width, 160) for line in lines)
    assert "".join(lines).replace(" ", "") == prompt.replace(" ", "")
    assert letters.wrapped(prompt, max(width, 160), 2)[-1].endswith("…")


def test_letters_that_one_font_lacks_come_from_another() -> None:
    letters = Lettering(20)
    fonts = {letter: letters._font_of(letter) for letter in "aя\U0010fffe"}  # pyright: ignore[reportPrivateUsage]
    assert fonts["a"] is fonts["\U0010fffe"]  # nobody has that one
    assert letters.width("яя") > 0
