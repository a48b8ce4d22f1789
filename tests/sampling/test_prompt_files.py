"""Files of prompts, in the form that people have them."""

import pytest

from trainer.core.errors import RecipeError
from trainer.sampling.prompt_files import Wish, wishes_of_lines, wishes_of_values


def test_lines_are_read_as_sd_scripts_reads_them() -> None:
    text = (
        "# a comment\n\n"
        "a cat, (big:1.2) --n low quality, bad --w 832 --h 1216 --d 42 --l 7.5 --s 28 --ss euler_a\n"
        "a well-known -- thing --D 3\n"
    )
    assert wishes_of_lines(text, "p.txt") == [
        Wish(
            prompt="a cat, (big:1.2)", negative="low quality, bad", width=832, height=1216, seed=42, guidance=7.5,
            steps=28, sampler="euler_a",
        ),
        Wish(prompt="a well-known -- thing", seed=3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a --q 3", "no flag --q"),
        ("a --w wide", "wants a number"),
        ("a --d 1 --d 2", "given twice"),
        ("a --s 0", "steps"),
        ("a --l nan", "guidance"),
        ("a --w 99999999", "width"),
    ],
)
def test_a_mistake_is_named_with_its_line(line: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        wishes_of_lines(f"fine\n{line}\n", "p.txt")
    assert caught.value.where is not None
    assert caught.value.where.startswith("p.txt:2")


def test_entries_are_texts_or_keys() -> None:
    values = ["a cat", {"prompt": "a dog", "negative": "cat", "seed": 3, "sampler": "Euler a"}]
    assert wishes_of_values(values, "p.yaml") == [
        Wish(prompt="a cat"),
        Wish(prompt="a dog", negative="cat", seed=3, sampler="Euler a"),
    ]


@pytest.mark.parametrize("values", [{"prompt": "a"}, "a", None, [{"promt": "a"}], [{"prompt": "a", "seed": -1}], [3]])
def test_other_values_are_refused(values: object) -> None:
    with pytest.raises(RecipeError) as caught:
        wishes_of_values(values, "p.yaml")
    assert str(caught.value.where).startswith("p.yaml")
