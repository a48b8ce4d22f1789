"""Captions as lists of tags: taken apart and put together again without a crumb."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tags:
    """The tags of a caption: those that stay in front, those that may move or go, those that stay behind."""

    front: tuple[str, ...]
    movable: tuple[str, ...]
    behind: tuple[str, ...] = ()

    def but(self, movable: Iterable[str]) -> list[str]:
        """All tags in order, with others in the middle."""
        return [*self.front, *movable, *self.behind]


def split_tags(text: str, separator: str) -> list[str]:
    """The tags between separators, without spaces around them; empty ones are none."""
    return [tag for part in text.split(separator.strip() or None) if (tag := part.strip())]


def join_tags(tags: Iterable[str], separator: str) -> str:
    """The tags with the separator and a space between them; a separator that ends in a space brings its own."""
    return _joint(separator).join(tags)


def part_tags(text: str, separator: str, marker: str, keep: int, own: Collection[str]) -> Tags:
    """The tags of a caption by their right to stay.

    Args:
        text: the caption.
        separator: between tags.
        marker: between the part that stays in front, the part that moves, and the part that stays behind; "" for none.
        keep: how many first tags stay where the caption has no marker.
        own: tags that stay, and come first in the part that moves, wherever they stood there; in whatever letters.
    """
    before, *others = text.split(marker) if marker else [text]
    fixed, middle = ([], before) if not others else (split_tags(before, separator), others[0])
    behind = [tag for part in others[1:] for tag in split_tags(part, separator)]
    wanted = {tag.casefold() for tag in own if tag}
    tags = split_tags(middle, separator)
    first = [tag for tag in tags if tag.casefold() in wanted] if wanted else []
    rest = [tag for tag in tags if tag.casefold() not in wanted] if first else tags
    kept = 0 if others else max(keep - len(first), 0)
    return Tags((*fixed, *first, *rest[:kept]), tuple(rest[kept:]), tuple(behind))


def replace_mark(text: str, mark: str, separator: str) -> str:
    """The text with the separator in the place of a mark, and no empty tag beside it."""
    if not mark or mark not in text:
        return text
    return tidy(_joint(separator).join(part.strip() for part in text.split(mark)), separator)


def tidy(text: str, separator: str) -> str:
    """The text without doubled spaces, empty tags, and loose spaces before a separator; nothing else moves."""
    single = re.sub(" {2,}", " ", text).strip()
    mark = separator.strip()
    if not mark:
        return single
    before = separator[: separator.index(mark)]
    return f"{before}{mark}".join(part.rstrip() for part in single.split(mark) if part.strip()).lstrip()


def put_in_front(first: str, text: str, separator: str) -> str:
    """`first` as a tag in front of the text."""
    mark = separator.strip()
    rest = text.removeprefix(mark).lstrip() if mark else text
    return join_tags([first, rest] if rest else [first], separator)


def surround(prefix: str, text: str, suffix: str, separator: str) -> str:
    """Prefix, text and suffix with spaces between them; a suffix that begins with the separator leans on the text."""
    if not text:
        return tidy(f"{prefix} {suffix}", separator)
    mark = separator.strip()
    if mark and suffix.startswith(mark):
        text, suffix = f"{text.removesuffix(mark).rstrip()}{suffix}", ""
    return " ".join(part for part in (prefix, text, suffix) if part)


def _joint(separator: str) -> str:
    blank = not separator.strip()
    return " " if blank else separator if separator[-1].isspace() else f"{separator} "
