"""Tags are counted, compared, and held against the trigger."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from trainer.data.account import Account
from trainer.data.captions import CaptionRules
from trainer.data.example import Example, Size
from trainer.data.examples import ExampleTable
from trainer.data.health.findings import Finding
from trainer.data.health.vocabulary import Vocabulary, spelled, vocabulary_findings, vocabulary_of

Example_ = Callable[..., Example]
Account_ = Callable[..., Account]
RULES = CaptionRules(trigger="zwx")


def vocabulary(account: Account, rules: CaptionRules = RULES) -> Vocabulary:
    return vocabulary_of(account, lambda example: rules)


def kinds(found: Vocabulary) -> dict[str, Finding]:
    return {finding.kind: finding for finding in vocabulary_findings(found)}


def test_tags_are_counted_once_a_caption_without_the_trigger(an_example: Example_, an_account: Account_) -> None:
    account = an_account(
        an_example("zwx, cat, red, cat"),
        an_example("cat, ZWX"),
        an_example("red, dog", regularisation=True),
        an_example("red, bird", held_out=True),
    )
    assert vocabulary(account).counts == {"cat": 2, "red": 1}
    assert vocabulary(account).captions == 2


def test_tags_beside_the_trigger_in_every_caption_are_fused_with_it(an_example: Example_, an_account: Account_) -> None:
    account = an_account(*(an_example(f"zwx, brown hair, pose {number}") for number in range(6)))
    found = vocabulary(account)
    assert found.fused == {"zwx": ("brown hair",)}
    assert "brown hair" in kinds(found)["fused-tags"].what
    assert "'zwx'" in kinds(found)["fused-tags"].what
    assert "data.captions.trigger" in kinds(vocabulary(account, CaptionRules()))["fused-tags"].mend


def test_few_pictures_and_equal_captions_fuse_nothing(an_example: Example_, an_account: Account_) -> None:
    few = an_account(*(an_example(f"zwx, brown hair, pose {number}") for number in range(4)))
    assert not vocabulary(few).fused
    equal = an_account(*[an_example("zwx, brown hair")] * 9)
    assert "fused-tags" not in kinds(vocabulary(equal))


def test_tags_of_several_spellings(an_example: Example_, an_account: Account_) -> None:
    written = ("zwx, blue eyes", "zwx, Blue_eyes", "zwx, blue  eyes", "zwx, saber \\(fate\\)", "zwx, saber (fate), hat")
    found = vocabulary(an_account(*map(an_example, written)))
    assert found.spellings == {
        "blue eyes": {"blue eyes": 1, "Blue_eyes": 1, "blue  eyes": 1},
        "saber (fate)": {"saber \\(fate\\)": 1, "saber (fate)": 1},
    }
    assert found.counts["blue eyes"] == 3
    assert "'Blue_eyes' (1)" in kinds(found)["spellings"].what


def test_tags_that_stand_together(an_example: Example_, an_account: Account_) -> None:
    found = vocabulary(
        an_account(*map(an_example, ("zwx, a, b", "zwx, a, b", "zwx, a, c", "zwx, c", "zwx, only once")))
    )
    assert found.top == ("a", "b", "c")
    assert found.together == ((3, 2, 1), (2, 2, 0), (1, 0, 2))


def test_sentences_are_taken_apart_into_words(an_example: Example_, an_account: Account_) -> None:
    sentences = [
        "A small brown dog is running over the wide green lawn of a park",
        "The brown dog lies beside a very large and rather old wooden table",
        "In the evening a dog with brown fur waits for its dinner at the door",
    ]
    found = vocabulary(an_account(*map(an_example, sentences)))
    assert not found.tagged
    assert found.counts["brown"] == found.counts["dog"] == 3
    assert "the" not in found.counts
    assert not found.spellings


def test_other_separators_are_followed(an_example: Example_, an_account: Account_) -> None:
    rules = CaptionRules(trigger="zwx", secondary_separator=";", keep_separator="|||")
    found = vocabulary(an_account(an_example("zwx, one ||| two; three, four")), rules)
    assert set(found.counts) == {"one", "two", "three", "four"}


@given(st.text(max_size=20))
def test_a_spelling_is_its_own_spelling(tag: str) -> None:
    assert spelled(spelled(tag)) == spelled(tag)


@given(st.lists(st.text(st.sampled_from("ab, _A"), max_size=12), max_size=8))
def test_the_table_agrees_with_the_counts(captions: list[str]) -> None:
    size = Size(8, 8)
    examples = [
        Example(source=0, locator="a", name="a", key="0" * 64, size=size, captions=(text,)) for text in captions
    ]
    found = vocabulary(Account(accepted=ExampleTable.of(examples), sources=("folder",)))
    for place, term in enumerate(found.top):
        assert found.together[place][place] == found.counts[term]
        for other in range(len(found.top)):
            assert found.together[place][other] == found.together[other][place] <= found.counts[term]
