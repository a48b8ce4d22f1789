"""Captions out of names, and fixed ones."""

from typing import Any

import pytest
import torch

from trainer.data.captioners.base import Captioner
from trainer.data.captioners.plain import FileName, Fixed, FolderName, words_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("red_ball-on grass (3)", "red ball on grass"),
        ("red ball 0012", "red ball"),
        ("red-ball_1024x768", "red ball"),
        ("castle_v2_final", "castle"),
        ("castle copy", "castle"),
        ("a cat 3f9a2c71", "a cat"),
        ("5482913_a cat", "a cat"),
        ("2 cats", "2 cats"),
        ("1girl, solo", "1girl solo"),
        ("IMG_2031", ""),
        ("DSC00012", "DSC00012"),
        ("Screenshot 2024-01-02 at 10.20.30", "Screenshot 2024 01 02 at"),
        ("0001", ""),
        ("d41d8cd98f00b204e9800998ecf8427e", ""),
        ("facade", "facade"),
        ("деревня_у_реки_07", "деревня у реки"),
        ("赤い球", "赤い球"),
    ],
)
def test_words_of_a_name(stem: str, words: str) -> None:
    assert words_of(stem) == words


def test_numbers_can_be_kept() -> None:
    assert words_of("route_66", keep_numbers=True) == "route 66"


@pytest.mark.parametrize(
    ("captioner", "name", "words"),
    [
        (FileName(), "set/10_x/red_ball.v2.png", "red ball"),
        (FileName(keep_numbers=True), "set/a_1.png", "a 1"),
        (FolderName(), "set/10_red_ball/7.png", "red ball"),
        (FolderName(), "holiday-in_rome/7.png", "holiday in rome"),
        (FolderName(), "set/2024_x/7.png", "2024 x"),
        (Fixed(text="ink drawing"), "set/7.png", "ink drawing"),
    ],
)
def test_each_says_its_words(captioner: Captioner, name: str, words: str) -> None:
    assert not captioner.looks
    assert captioner.open(CPU)((), [name, name]) == [words, words]


def test_a_fixed_text_is_not_empty() -> None:
    from pydantic import ValidationError

    nothing: dict[str, Any] = {"text": ""}
    with pytest.raises(ValidationError):
        Fixed(**nothing)
