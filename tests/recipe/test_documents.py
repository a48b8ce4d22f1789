"""The YAML reader: YAML 1.2's words, lines, and calm in the face of hostile files."""

import resource
import time

import pytest

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.recipe.documents import read_document, scalar
from trainer.recipe.parsing import read_settings

SIZE = 256 * 1024  # the largest file that is read


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("12", 12),
        ("-3", -3),
        ("+3", 3),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("1girl", "1girl"),
        ("e5", "e5"),
        ("nan", "nan"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_words_mean_what_yaml_1_2_says(word: str, value: object) -> None:
    assert scalar(word) == value
    assert type(scalar(word)) is type(value)


def test_a_quoted_word_is_text() -> None:
    document, value = read_document("a: '12'\nb: \"true\"\nc: |\n  1e-3\n", "x")
    assert value == {"a": "12", "b": "true", "c": "1e-3\n"}
    assert not document.mistakes


def test_every_key_and_entry_has_its_line() -> None:
    document, _ = read_document("a: 1\nb:\n  - x\n  - c: {d: 3,\n        e: 4}\n", "x")
    assert document.lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 1): 4,
        ("b", 1, "c"): 4,
        ("b", 1, "c", "d"): 4,
        ("b", 1, "c", "e"): 5,
    }
    assert document.where(("b", 1, "c", "missing")) == "x:4 (b.1.c.missing)"


class Item(Settings):
    rank: int = 1


class Whole(Settings):
    name: str = ""
    items: tuple[Item, ...] = ()


HOSTILE = {
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "recursive alias": "a: &a [*a]\n",
    "deep lists": "a: " + "[" * (SIZE - 10),
    "deep blocks": "- " * (SIZE // 2),
    "many keys": "".join(f"k{i}: 1\n" for i in range(SIZE // 10)),
    "one key many times": "k: 1\n" * (SIZE // 6),
    "many aliases": "a:\n" + "- *a\n" * (SIZE // 6),
    "many wrong entries": "items:\n" + "- {rank: x}\n" * (SIZE // 13),
    "a long key": "k" * (SIZE - 5) + ": 1",
    "a long word": "nmae: " + "9" * (SIZE - 9),
    "colons": ": " * (SIZE // 2),
    "question marks": "? " * (SIZE // 2),
    "a long tag": "name: !" + "a" * (SIZE - 9),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_quickly_in_few_words(name: str) -> None:
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RecipeError) as raised:
        read_settings(HOSTILE[name], "x.yaml", (), Whole)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(str(raised.value)) < 6000
    assert time.process_time() - began < 10  # seconds; one or less here, and endless where aliases are expanded
    assert used < 200 * 1024  # KiB
