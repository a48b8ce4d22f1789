"""Words are pure functions of (seed, epoch, key), and all of them are known beforehand."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.seeds import Seeds
from trainer.data.captions import CaptionRules, caption_of, captions_needed, has_trigger, is_dropped
from trainer.data.example import Example
from trainer.data.sidecars import clean

Maker = Callable[..., Example]
SEEDS = Seeds(3)


@pytest.mark.parametrize(
    ("caption", "rules", "expected"),
    [
        ("angry face", CaptionRules(trigger="blobby"), "blobby, angry face"),
        ("a Blobby, angry", CaptionRules(trigger="blobby"), "a Blobby, angry"),
        ("blobbyish", CaptionRules(trigger="blobby"), "blobby, blobbyish"),
        ("", CaptionRules(trigger="blobby"), "blobby"),
        ("cat", CaptionRules(prefix="photo of", suffix="at home"), "photo of cat at home"),
        ("cat", CaptionRules(trigger="zwx", prefix="photo of zwx"), "photo of zwx cat"),
        ("c++ (a)", CaptionRules(trigger="(a)"), "c++ (a)"),
        ("", CaptionRules(), ""),
    ],
)
def test_trigger_prefix_and_suffix(example: Maker, caption: str, rules: CaptionRules, expected: str) -> None:
    assert caption_of(example(caption), rules, SEEDS, epoch=0) == expected


def test_regularisation_captions_stay_as_they_are(example: Maker) -> None:
    rules = CaptionRules(trigger="blobby", prefix="p", suffix="s", shuffle_tags=True)
    ordinary = example("b, a, d, c", regularisation=True)
    assert {caption_of(ordinary, rules, SEEDS, epoch) for epoch in range(9)} == {"b, a, d, c"}


def test_shuffling_keeps_every_tag_and_what_stands_in_front(example: Maker) -> None:
    rules = CaptionRules(trigger="zwx", shuffle_tags=True, keep_tags=2, variants=5)
    one = example("first, a, b, c, ZWX, d")
    seen = [caption_of(one, rules, SEEDS, epoch) for epoch in range(10)]
    assert seen[:5] == seen[5:]  # the variants take turns
    assert len(set(seen)) > 2
    for caption in seen:
        tags = caption.split(", ")
        assert tags[:2] == ["ZWX", "first"]
        assert sorted(tags[2:]) == ["a", "b", "c", "d"]


def test_pictures_of_one_caption_take_turns_at_different_times(example: Maker) -> None:
    rules = CaptionRules(shuffle_tags=True, variants=4)
    pictures = [example("a, b, c, d, e, f", key=str(number)) for number in range(20)]
    assert len({caption_of(one, rules, SEEDS, epoch=0) for one in pictures}) == 4
    assert len(captions_needed(pictures, rules, SEEDS)) == 4


@given(
    caption=st.text(alphabet="ab, ", max_size=12),
    trigger=st.sampled_from(["", "a", "zwx"]),
    shuffle=st.booleans(),
    keep=st.integers(0, 3),
    variants=st.integers(1, 5),
    epoch=st.integers(0, 1000),
    dropout=st.sampled_from([0.0, 0.5]),
)
def test_what_is_needed_holds_all_that_can_be_asked_for(
    caption: str, trigger: str, shuffle: bool, keep: int, variants: int, epoch: int, dropout: float
) -> None:
    from pathlib import Path

    from trainer.data.example import Size

    one = Example(
        path=Path("a"), name="a", key="k", size=Size(1, 1), caption=caption, source=0, repeats=1, weight=1.0,
        regularisation=False,
    )  # fmt: skip
    rules = CaptionRules(trigger=trigger, shuffle_tags=shuffle, keep_tags=keep, variants=variants, dropout=dropout)
    needed = captions_needed([one], rules, SEEDS)
    assert caption_of(one, rules, SEEDS, epoch) in needed
    assert ("" in needed) or dropout == 0
    assert not trigger or has_trigger(caption_of(one, rules, SEEDS, epoch), trigger)


def test_dropout_is_as_frequent_as_asked() -> None:
    rules = CaptionRules(dropout=0.25)
    dropped = sum(is_dropped(rules, SEEDS, number, slot) for number in range(500) for slot in range(8))
    assert 0.22 < dropped / 4000 < 0.28
    assert not any(is_dropped(CaptionRules(), SEEDS, number, 0) for number in range(100))


def test_captions_are_cleaned() -> None:
    words = clean("one\x00\x1b[31m,\ttwo \u202e\n\n  three\u200d  ")
    assert words.text == "one[31m, two  three\u200d"
    assert len(words.remarks) == 2
