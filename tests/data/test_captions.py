"""Each rule for captions does what it says."""

from collections.abc import Sequence
from itertools import permutations

import pytest
from pydantic import ValidationError

from trainer.core.seeds import Seeds
from trainer.data.captions import CaptionRules, caption_of, captions_needed, has_trigger, is_dropped
from trainer.data.example import Example, Size

SEEDS = Seeds(3)


def an_example(*captions: str, key: str = "k", regularisation: bool = False, class_words: str = "") -> Example:
    return Example(
        source=0, locator="a.png", name="a.png", key=key, size=Size(64, 64), captions=captions,
        regularisation=regularisation, class_words=class_words,
    )  # fmt: skip


def shown(example: Example, rules: CaptionRules, epochs: int = 12) -> list[str]:
    return [caption_of(example, rules, SEEDS, epoch) for epoch in range(epochs)]


def needed(examples: Sequence[Example], rules: CaptionRules) -> set[str]:
    return captions_needed(examples, lambda _: rules, SEEDS)


@pytest.mark.parametrize(
    ("caption", "rules", "expected"),
    [
        ("angry face", CaptionRules(trigger="blobby"), "blobby, angry face"),
        ("a Blobby, angry", CaptionRules(trigger="blobby"), "a Blobby, angry"),
        ("blobbyish", CaptionRules(trigger="blobby"), "blobby, blobbyish"),
        ("", CaptionRules(trigger="blobby"), "blobby"),
        ("cat", CaptionRules(prefix="photo of", suffix="at home"), "photo of cat at home"),
        ("", CaptionRules(prefix="photo,", suffix=", at home"), "photo, at home"),
        ("", CaptionRules(suffix=", at home"), "at home"),
        ("cat,", CaptionRules(suffix=", at home"), "cat, at home"),
        (", cat", CaptionRules(trigger="zwx"), "zwx, cat"),
        ("cat", CaptionRules(trigger="zwx", prefix="photo of zwx"), "photo of zwx cat"),
        ("c++ (a)", CaptionRules(trigger="(a)"), "c++ (a)"),
        ("", CaptionRules(), ""),
        ("a,b ,  c,, {x|y} ||| (d:1.2); e,", CaptionRules(), "a,b ,  c,, {x|y} ||| (d:1.2); e,"),
        ("cat", CaptionRules(trigger="zwx", separator="."), "zwx. cat"),
    ],
)
def test_trigger_prefix_and_suffix(caption: str, rules: CaptionRules, expected: str) -> None:
    assert shown(an_example(caption), rules, 2) == [expected] * 2


def test_what_an_earlier_version_made_of_a_caption_it_still_makes() -> None:
    """The caches and runs of people depend on it; the numbers come from the version before captions had marks."""
    rules = CaptionRules(trigger="zwx", prefix="photo of", shuffle_tags=True, keep_tags=1, variants=3)
    assert shown(an_example("a, b, ZWX, c, d", key="one"), rules, 4) == [
        "photo of ZWX, b, c, a, d",
        "photo of ZWX, a, b, d, c",
        "photo of ZWX, a, d, c, b",
        "photo of ZWX, b, c, a, d",
    ]


def test_regularisation_captions_stay_as_they_are() -> None:
    rules = CaptionRules(
        trigger="blobby", prefix="p", suffix="s", shuffle_tags=True, tag_dropout=0.9, warmup_epochs=5,
        class_words="front", wildcards=True, keep_separator="|||", secondary_separator=";",
    )  # fmt: skip
    ordinary = an_example("b, a, d, c", regularisation=True, class_words="girl")
    assert set(shown(ordinary, rules)) == {"b, a, d, c"}
    marked = an_example("b ||| a;d, {c|c}", regularisation=True)
    assert set(shown(marked, rules)) == {"b, a, d, c"}  # marks are for us, not for the text encoder
    assert set(shown(an_example(regularisation=True, class_words="girl"), rules)) == {"girl"}


def test_shuffling_keeps_every_tag_and_what_stands_in_front() -> None:
    rules = CaptionRules(trigger="zwx", shuffle_tags=True, keep_tags=2, variants=5)
    seen = shown(an_example("first, a, b, c, ZWX, d"), rules, 10)
    assert seen[:5] == seen[5:]  # the variants take turns
    assert len(set(seen)) > 2
    for caption in seen:
        tags = caption.split(", ")
        assert tags[:2] == ["ZWX", "first"]
        assert sorted(tags[2:]) == ["a", "b", "c", "d"]


def test_pictures_of_one_caption_take_turns_at_different_times() -> None:
    rules = CaptionRules(shuffle_tags=True, variants=4)
    pictures = [an_example("a, b, c, d, e, f", key=str(number)) for number in range(20)]
    assert len({caption_of(one, rules, SEEDS, epoch=0) for one in pictures}) == 4
    assert len(needed(pictures, rules)) == 4


@pytest.mark.parametrize(
    ("several", "expected"),
    [("choose", {"one", "two, 2", "three"}), ("first", {"one"}), ("join", {"one two, 2 three"})],
)
def test_several_captions(several: str, expected: set[str]) -> None:
    rules = CaptionRules.model_validate({"several": several, "variants": 2})
    example = an_example("one", "two, 2", "three")
    assert set(shown(example, rules, 3)) == expected
    assert needed([example], rules) == expected


def test_empty_captions_leave_nothing_when_they_are_joined() -> None:
    assert shown(an_example("", "one", ""), CaptionRules(several="join"), 1) == ["one"]


def test_several_captions_are_shown_equally_often_whatever_else_varies() -> None:
    rules = CaptionRules(shuffle_tags=True, variants=4)
    captions = shown(an_example("a, b, c", "d, e, f", "g"), rules, 12)
    assert [sum(sign in caption for caption in captions) for sign in "adg"] == [4, 4, 4]


@pytest.mark.parametrize("every", [2, 3, 4])
def test_no_caption_falls_always_on_an_epoch_without_words(every: int) -> None:
    rules = CaptionRules(drop_every=every)
    captions = shown(an_example("a", "b", "c", "d"), rules, 8 * every)
    with_words = [text for epoch, text in enumerate(captions) if not is_dropped(rules, SEEDS, 0, 0, epoch)]
    assert len(with_words) == 8 * (every - 1)
    assert [with_words.count(text) for text in "abcd"] == [2 * (every - 1)] * 4


def test_every_option_of_a_choice_is_shown() -> None:
    rules = CaptionRules(wildcards=True, prefix="{photo|picture} of", variants=6)
    seen = shown(an_example("a {red|green|} hat, {big|small}"), rules, 6)
    for words in ("red hat", "green hat", "a hat", "big", "small", "photo of", "picture of"):
        assert sum(words in caption for caption in seen) == (2 if "hat" in words else 3)
    assert not any("  " in caption for caption in seen)


def test_an_empty_choice_leaves_no_empty_tag_and_moves_nothing_else() -> None:
    rules = CaptionRules(wildcards=True)
    assert set(shown(an_example("{|}, 1,000 cats,{|} {|}, x{|} ,y"), rules)) == {"1,000 cats, x,y"}


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_fixed_parts_stay_and_the_marker_goes(shuffle: bool) -> None:
    rules = CaptionRules(keep_separator="|||", shuffle_tags=shuffle, tag_dropout=0.5 if shuffle else 0, variants=9)
    seen = shown(an_example("one, two ||| a, b, c, d ||| last, end"), rules, 9)
    assert all(text.startswith("one, two") and text.endswith("last, end") for text in seen)
    assert (len(set(seen)) > 3) == shuffle
    assert set(shown(an_example("||| a |||"), CaptionRules(keep_separator="|||"))) == {"a"}
    assert set(shown(an_example("a, ||| b ||| c ||| d"), rules)) <= {"a, b, c, d", "a, c, d"}


def test_a_caption_with_the_marker_does_not_follow_keep_tags() -> None:
    rules = CaptionRules(keep_separator="|||", keep_tags=3, tag_dropout=1)
    assert shown(an_example("one ||| a, b, c, d"), rules, 1) == ["one"]
    assert shown(an_example("one, a, b, c, d"), rules, 1) == ["one, a, b"]


def test_the_secondary_separator_holds_tags_together() -> None:
    rules = CaptionRules(secondary_separator=";", shuffle_tags=True, variants=12)
    seen = shown(an_example("red hat;red shoes, a, b, c"), rules)
    assert len(set(seen)) > 3
    assert all("red hat, red shoes" in caption and ";" not in caption for caption in seen)
    assert shown(an_example("a;b;;c, d"), CaptionRules(secondary_separator=";"), 1) == ["a, b, c, d"]
    assert shown(an_example("a;b | c"), CaptionRules(secondary_separator=";", separator=" | "), 1) == ["a | b | c"]


@pytest.mark.parametrize(
    ("separator", "written", "expected"),
    [
        (";", "a;b ; c", {f"{x}; {y}; {z}" for x, y, z in permutations("abc")}),
        (" ", "a  b", {"a b", "b a"}),
        (" | ", "a|b | c|", {f"{x} | {y} | {z}" for x, y, z in permutations("abc")}),
        (". ", "A cat.  A dog.", {"A cat. A dog", "A dog. A cat"}),
    ],
)
def test_tags_are_joined_by_the_separator_of_the_recipe(separator: str, written: str, expected: set[str]) -> None:
    rules = CaptionRules(separator=separator, shuffle_tags=True, variants=40)
    assert needed([an_example(written)], rules) == expected


def test_tags_are_dropped_as_often_as_asked_and_fixed_ones_never() -> None:
    variants = 1500
    rules = CaptionRules(tag_dropout=0.3, keep_tags=1, trigger="zwx", variants=variants)
    captions = [text.split(", ") for text in shown(an_example("kept, a, b, c, zwx, d"), rules, variants)]
    kept = [text for text in captions if text[0] == "zwx"]
    assert len(kept) == variants
    for tag in "abcd":
        assert 0.26 < sum(tag not in text for text in captions) / variants < 0.34
    assert all(text == sorted(text, key=["zwx", "kept", "a", "b", "c", "d"].index) for text in captions)


def test_a_tag_of_which_the_trigger_is_a_part_may_go_but_the_trigger_stays() -> None:
    rules = CaptionRules(tag_dropout=1, trigger="zwx")
    assert shown(an_example("a zwx doll, red"), rules, 1) == ["zwx"]


def test_the_warm_up_shows_more_tags_epoch_by_epoch() -> None:
    rules = CaptionRules(warmup_epochs=4, warmup_tags=2, keep_tags=1, prefix="photo of")
    example = an_example("zero, a, b, c, d, e, f, g, h")
    seen = shown(example, rules, 6)
    assert seen[0] == "photo of zero, a, b"
    assert [text.count(",") for text in seen] == [2, 3, 5, 6, 8, 8]
    assert needed([example], rules) == set(seen)
    assert shown(an_example("a, b"), rules, 1) == ["photo of a, b"]  # no more than there are
    shuffled = rules.model_copy(update={"shuffle_tags": True})
    assert set(shown(example, shuffled, 1)[0].removeprefix("photo of ").split(", ")) == {"zero", "a", "b"}


def test_a_warm_up_adds_its_own_epochs_and_does_not_multiply() -> None:
    rules = CaptionRules(warmup_epochs=5, shuffle_tags=True, variants=8)
    assert len(needed([an_example("a, b, c, d, e, f, g, h, i, j")], rules)) <= 8 + 5


def test_class_words() -> None:
    front = CaptionRules(class_words="front", trigger="zwx", tag_dropout=0.5, prefix="photo of", variants=12)
    assert set(shown(an_example(class_words="zwx girl"), CaptionRules())) == {"zwx girl"}
    assert set(shown(an_example("smile", class_words="zwx girl"), CaptionRules())) == {"smile"}
    seen = shown(an_example("smile", class_words="zwx girl"), front)
    assert set(seen) == {"photo of zwx girl, smile", "photo of zwx girl"}
    # as a tag of its own it is not dropped, and not said twice
    seen = shown(an_example("smile, Girl", class_words="girl"), front)
    assert set(seen) == {"zwx, photo of Girl, smile", "zwx, photo of Girl"}


def test_words_are_dropped_as_often_as_asked() -> None:
    rules = CaptionRules(dropout=0.25)
    dropped = sum(is_dropped(rules, SEEDS, number, slot, epoch=0) for number in range(500) for slot in range(8))
    assert 0.22 < dropped / 4000 < 0.28
    assert not any(is_dropped(CaptionRules(), SEEDS, number, 0, epoch=number) for number in range(100))


def test_every_nth_epoch_is_without_words() -> None:
    rules = CaptionRules(drop_every=3)
    assert [is_dropped(rules, SEEDS, 0, 0, epoch) for epoch in range(6)] == [False, False, True] * 2
    assert needed([an_example("a")], rules) == {"a", ""}


def test_each_source_follows_its_own_rules() -> None:
    two = [an_example("a"), an_example("b", regularisation=True)]
    rules = {False: CaptionRules(trigger="zwx"), True: CaptionRules(dropout=0.1)}
    assert captions_needed(two, lambda one: rules[one.regularisation], SEEDS) == {"zwx, a", "b", ""}
    assert captions_needed(two[:1], lambda one: rules[one.regularisation], SEEDS) == {"zwx, a"}


@pytest.mark.parametrize(
    "marks",
    [
        {"secondary_separator": ","},
        {"keep_separator": ","},
        {"secondary_separator": "|||", "keep_separator": " |||"},
        {"separator": "and"},
        {"separator": ""},
    ],
)
def test_marks_that_cannot_be_told_apart_are_refused(marks: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"must (?:be signs|differ)|at least 1"):
        CaptionRules.model_validate(marks)


def test_a_trigger_is_a_word_of_its_own() -> None:
    assert has_trigger("a Zwx, smiling", "zwx")
    assert not has_trigger("zwxs", "zwx")
