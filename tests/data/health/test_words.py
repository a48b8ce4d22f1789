"""Captions that are no captions."""

from collections.abc import Callable

import pytest

from trainer.data.account import Account
from trainer.data.captions import CaptionRules
from trainer.data.example import Example
from trainer.data.health.findings import Finding
from trainer.data.health.words import CONCERNS, looks_like_file_name, word_findings

Example_ = Callable[..., Example]
Account_ = Callable[..., Account]
RULES = CaptionRules(trigger="zwx")


def found(account: Account, rules: CaptionRules = RULES) -> dict[str, Finding]:
    findings = list(word_findings(account, lambda example: rules))
    assert len({finding.kind for finding in findings}) == len(findings)
    return {finding.kind: finding for finding in findings}


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("IMG_0042", "file-name-captions"),
        ("DSC00012", "file-name-captions"),
        ("20240131_120000", "file-name-captions"),
        ("image (3)", "file-name-captions"),
        ("Screenshot 2024-01-31 12.30.00", "file-name-captions"),
        ("3f2504e0-4f89-11d3-9a0c-0305e82c3301", "file-name-captions"),
        ("my holiday.JPEG", "file-name-captions"),
        ("zwx, from https://example.com/a?b=c", "link-captions"),
        ("zwx, www.example.com", "link-captions"),
        ("zwx, (blue eyes:1.2)", "weighted-captions"),
        ("zwx, <lora:thing:0.8>", "weighted-captions"),
        ("I'm sorry, but I cannot describe people.", "refused-captions"),
        ("zwx, <b>bold</b>", "markup-captions"),
        ("zwx &amp; friends", "markup-captions"),
        ("zwx, a {red|blue} car", "unused-choices"),
    ],
)
def test_one_such_caption_is_named(an_example: Example_, an_account: Account_, caption: str, kind: str) -> None:
    findings = found(an_account(an_example("zwx, a cat"), an_example(caption), an_example("zwx, a dog")))
    assert findings[kind].places == (1,)
    assert findings[kind].where == ("folder/a.png",)
    assert findings[kind].mend
    assert [name for name in findings if name in {concern.kind for concern in CONCERNS}] == [kind]


@pytest.mark.parametrize(
    "caption",
    [
        "1girl, solo",
        "zwx, 35mm, (close-up), scale 1:10",
        "a red car",
        "decade",
        "zwx at 12:30",
        "i <3 zwx",
        "c++, {braces}",
        "sorry face",
        "2024 calendar",
    ],
)
def test_ordinary_captions_are_left_in_peace(an_example: Example_, an_account: Account_, caption: str) -> None:
    findings = found(an_account(an_example(caption), an_example("zwx, b"), an_example("zwx, c")))
    assert not set(findings) & {concern.kind for concern in CONCERNS}


@pytest.mark.parametrize(
    ("caption", "name", "expected"),
    [("cat_0007", "cat_0007.png", True), ("red-car", "red-car.png", False), ("a cat 7", "a cat 7.png", False)],
)
def test_a_caption_that_is_its_own_file_name(caption: str, name: str, expected: bool) -> None:
    assert looks_like_file_name(caption, name) is expected


def test_all_captions_alike_say_that_the_trigger_would_do(an_example: Example_, an_account: Account_) -> None:
    alike = found(an_account(*[an_example("zwx, a cat")] * 4))["identical-captions"]
    assert alike.level == "warning"
    assert "trigger alone" in alike.what
    mostly = found(an_account(*[an_example("zwx, a cat")] * 3, an_example("zwx, a dog")))["identical-captions"]
    assert mostly.level == "note"
    assert "3 of 4" in mostly.what
    half = found(an_account(*[an_example("zwx, a cat")] * 2, *[an_example("zwx, a dog")] * 2))
    assert "identical-captions" not in half


def test_class_pictures_may_have_one_caption(an_example: Example_, an_account: Account_) -> None:
    class_pictures = [an_example("a cat", regularisation=True)] * 5
    assert "identical-captions" not in found(an_account(an_example("zwx, 1"), an_example("zwx, 2"), *class_pictures))


def test_an_opening_matters_where_most_have_it(an_example: Example_, an_account: Account_) -> None:
    opened = [an_example(f"a photo of zwx {number}") for number in range(3)]
    assert "opening-captions" in found(an_account(*opened, an_example("zwx, standing")))
    assert "opening-captions" not in found(an_account(opened[0], an_example("zwx, a"), an_example("zwx, b")))


def test_the_trigger_may_come_by_a_prefix(an_example: Example_, an_account: Account_) -> None:
    account = an_account(an_example("a cat"), an_example("a dog"))
    assert found(account)["trigger-missing"].places == (0, 1)
    assert "trigger-missing" not in found(account, CaptionRules(trigger="zwx", prefix="photo of zwx"))


def test_each_of_several_captions_needs_the_trigger(an_example: Example_, an_account: Account_) -> None:
    account = an_account(an_example("zwx, a cat", "a cat"), an_example("zwx, a dog", "a zwx dog"))
    findings = found(account)
    assert findings["trigger-missing"].places == (0,)
    assert findings["several-captions"].places == (0, 1)


def test_class_words_are_unused_where_there_are_captions(an_example: Example_, an_account: Account_) -> None:
    account = an_account(an_example("zwx, x", class_words="zwx cat"), an_example(class_words="zwx cat"))
    assert found(account)["unused-class-words"].places == (0,)
    assert "unused-class-words" not in found(account, CaptionRules(trigger="zwx", class_words="front"))


def test_held_out_captions_need_no_trigger_but_must_be_words(an_example: Example_, an_account: Account_) -> None:
    findings = found(an_account(an_example("zwx, a"), an_example("IMG_0042", held_out=True)))
    assert "trigger-missing" not in findings
    assert findings["file-name-captions"].places == (1,)
