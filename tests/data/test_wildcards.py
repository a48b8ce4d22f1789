"""Choices in braces: all of them, nested, empty, escaped; and what only looks like one stays."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.wildcards import has_choices, resolve


def first(_place: int, _count: int) -> int:
    return 0


def last(_place: int, count: int) -> int:
    return count - 1


@pytest.mark.parametrize(
    ("text", "with_first", "with_last"),
    [
        ("a {red|green|blue} hat", "a red hat", "a blue hat"),
        ("{a|b}{c|d}", "ac", "bd"),
        ("{a|{b|c} d}", "a", "c d"),
        ("{{a|b}|c}", "a", "c"),
        ("{|x}", "", "x"),
        ("{x|}", "x", ""),
        ("{a, b|c}", "a, b", "c"),
        ("{a|{b}}", "a", "{b}"),
        (r"{a\|b|c\}}", "a|b", "c}"),
        (r"\{a|b\} {c|d}", "{a|b} c", "{a|b} d"),
        (r"miku \(cosplay\) {a|b}", r"miku \(cosplay\) a", r"miku \(cosplay\) b"),
        ("{a|{b|c}", "{a|b", "{a|c"),
        ("a} {b|c}", "a} b", "a} c"),
    ],
)
def test_a_choice_becomes_one_of_its_options(text: str, with_first: str, with_last: str) -> None:
    assert has_choices(text)
    assert resolve(text, first) == with_first
    assert resolve(text, last) == with_last


@pytest.mark.parametrize(
    "text", ["", "a|b", "{a", "a}", "}a|b{", "{a}", "{}", "{{{}}}", "((a:1.2)), [b|c]", r"\||/, \o/"]
)
def test_what_is_no_choice_stays(text: str) -> None:
    assert not has_choices(text)
    assert resolve(text, first) == text


def test_escaped_braces_are_braces() -> None:
    assert not has_choices(r"\{a|b\}")
    assert resolve(r"\{a|b\}", first) == "{a|b}"


def test_only_choices_that_stand_are_asked_for() -> None:
    asked: list[tuple[int, int]] = []

    def pick(place: int, count: int) -> int:
        asked.append((place, count))
        return 0

    resolve("{a|{b|c}} {d|e|f}", pick)
    assert asked == [(0, 2), (2, 3)]


@given(st.text(alphabet="{}|\\ab ", max_size=30))
def test_any_text_is_read(text: str) -> None:
    assert resolve(text, first).count("{") <= text.count("{")
    if "{" not in text and "}" not in text:
        assert resolve(text, first) == text


def test_deep_braces_take_no_long_time() -> None:
    deep = 20_000
    started = time.monotonic()
    assert resolve("{|a" * deep + "}" * deep, last) == "a" * deep
    assert resolve("{" * deep, first) == "{" * deep
    assert time.monotonic() - started < 20
