"""Captions that need no network: out of names, or the same for all."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final, Literal

import torch
from PIL import Image
from pydantic import Field

from trainer.data.captioners.base import Captioner, Describer

_SEPARATORS: Final = re.compile(r"[\s_+.,;–—-]+")
_NUMBERED: Final = re.compile(r"[1-9]\d{0,2}_(.+)", re.DOTALL)  # sd-scripts' `10_name class`
# What cameras and programs put in front of a number; alone, it says nothing of the picture.
_CAMERA_WORDS: Final = frozenset(
    (
        *("dcim", "dsc", "dscf", "dscn", "image", "img", "mvimg", "p", "photo", "pic", "picture", "pxl"),
        *("screenshot", "untitled", "vid", "wp"),
    )
)
_NUMBER: Final = re.compile(r"\(?\d+(x\d+)?\)?|v\d+|copy|kopie|final", re.IGNORECASE)
_HEXADECIMAL: Final = re.compile(r"(?=.*\d)[0-9a-f]{6,}", re.IGNORECASE)
_LONG_MIX: Final = re.compile(r"(?=.*\d)(?=.*[a-z])[0-9a-z]{12,}", re.IGNORECASE)
_LONG_NUMBER: Final = re.compile(r"\d{4,}")


class FileName(Captioner):
    """The words in a picture's file name: `red_ball-on grass (3).png` becomes "red ball on grass"."""

    looks = False

    kind: Literal["name"] = "name"
    keep_numbers: bool = False
    """Keep numbers and long codes at both ends of the name, which are taken for counters and hashes otherwise."""

    def open(self, device: torch.device) -> Describer:
        """As the contract says."""

        def describe(pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
            return [words_of(PurePosixPath(name).stem, keep_numbers=self.keep_numbers) for name in names]

        return describe


class FolderName(Captioner):
    """The words in the name of a picture's folder: `datasets/10_red ball/7.png` becomes "red ball"."""

    looks = False

    kind: Literal["folder"] = "folder"

    def open(self, device: torch.device) -> Describer:
        """As the contract says."""

        def describe(pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
            folders = [PurePosixPath(name).parent.name for name in names]
            return [_words(match[1] if (match := _NUMBERED.fullmatch(one)) else one) for one in folders]

        return describe


class Fixed(Captioner):
    """The same text for every picture."""

    looks = False

    kind: Literal["fixed"] = "fixed"
    text: str = Field(min_length=1)
    """What every caption says."""

    def open(self, device: torch.device) -> Describer:
        """As the contract says."""

        def describe(pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
            return [self.text] * len(names)

        return describe


def words_of(stem: str, *, keep_numbers: bool = False) -> str:
    """The words in a file's name without its suffix; "" where it is a mere counter, such as IMG_2031."""
    words = _words(stem).split()
    if keep_numbers:
        return " ".join(words)
    while words and (_NUMBER.fullmatch(words[-1]) or _is_code(words[-1])):
        words.pop()
    while words and (_LONG_NUMBER.fullmatch(words[0]) or _is_code(words[0])):
        words.pop(0)
    return "" if all(word.lower() in _CAMERA_WORDS for word in words) else " ".join(words)


def _words(text: str) -> str:
    return " ".join(word for word in _SEPARATORS.split(text) if word)


def _is_code(word: str) -> bool:
    return bool(_HEXADECIMAL.fullmatch(word) or _LONG_MIX.fullmatch(word))
