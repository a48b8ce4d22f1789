"""Words on sheets of pictures: any letters, wrapped, of a size that fits the pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any, Final

from PIL import ImageDraw, ImageFont

_SMALLEST: Final = 13  # pixels
_LARGEST: Final = 64
_SHARE: Final = 18  # of a picture's width a letter is high
_OTHERS: Final = (  # of many systems; each knows letters that the one before does not
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "YuGothM.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "Symbola.ttf",
    "seguisym.ttf",
    "unifont.otf",
    "unifont.ttf",
)
_NOBODYS: Final = "\U0010ffff"  # no font has it, so it is drawn as any letter that a font lacks
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def letters_for(width: int) -> int:
    """How high letters are in pixels beside pictures of this width, so that they can be read when all is in view."""
    return min(max(_SMALLEST, width // _SHARE), _LARGEST)


@dataclass(frozen=True)
class Lettering:
    """Letters of one size; those that Pillow's own font lacks come from the system's fonts, where these have them."""

    size: int  # pixels

    @property
    def pitch(self) -> int:
        """Pixels from line to line."""
        return round(self.size * 15 / 13)

    def width(self, text: str) -> int:
        """Pixels."""
        return -(-int(64 * sum(font.getlength(run) for font, run in self._runs(text))) // 64)

    def wrapped(self, text: str, width: int, most: int) -> list[str]:
        """The text on at most `most` lines of `width` pixels; what does not fit ends in an ellipsis."""
        lines: list[str] = [""]
        for word in (piece for long in text.split() for piece in self._broken(long, width)):
            longer = f"{lines[-1]} {word}".strip()
            if self.width(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        if len(lines) > most:
            lines = [*lines[: most - 1], lines[most - 1] + "…"]
        return [line for line in lines if line]

    def draw(self, pen: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str], colour: str = "black") -> None:
        """Lines below one another, from `place` on."""
        for number, line in enumerate(lines):
            left = float(place[0])
            for font, run in self._runs(line):
                pen.text((left, place[1] + number * self.pitch), run, fill=colour, font=font)
                left += font.getlength(run)

    def _broken(self, word: str, width: int) -> Iterator[str]:
        """A word that is wider than a line, in pieces that are not: many languages write no spaces."""
        while len(word) > 1 and self.width(word) > width:
            fits = next((end for end in range(len(word) - 1, 1, -1) if self.width(word[:end]) <= width), 1)
            yield word[:fits]
            word = word[fits:]
        yield word

    def _runs(self, text: str) -> Iterator[tuple[_Font, str]]:
        """The text in stretches that one font has."""
        for font, letters in groupby(text, key=self._font_of):
            yield font, "".join(letters)

    def _font_of(self, letter: str) -> _Font:
        if letter.isspace() or letter.isascii() or _has(self._first, letter):
            return self._first
        return next((font for font in self._others if _has(font, letter)), self._first)

    @property
    def _first(self) -> _Font:
        return _first_font(self.size)

    @cached_property
    def _others(self) -> list[ImageFont.FreeTypeFont]:
        return [font for name in _OTHERS if (font := _system_font(name, self.size)) is not None]


@lru_cache(maxsize=16)
def _first_font(size: int) -> _Font:
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=256)
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:  # this system does not have it
        return None


def _has(font: _Font, letter: str) -> bool:
    """Whether a font draws a letter otherwise than one that no font has."""
    return _drawn(font, letter) != _drawn(font, _NOBODYS)


@lru_cache(maxsize=4096)
def _drawn(font: _Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask: Any = font.getmask(letter)  # Pillow's own kind of picture, of which its types say nothing
    return mask.size, bytes(mask)
