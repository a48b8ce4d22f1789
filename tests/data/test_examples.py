"""Examples in columns are the examples, however many."""

import os
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.example import Example, Size
from trainer.data.examples import ExampleTable, ExampleTableBuilder

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
EXAMPLES = st.builds(
    Example,
    source=st.integers(0, 9),
    locator=st.binary(min_size=1, max_size=12).map(os.fsdecode),
    name=TEXT,
    key=st.binary(min_size=32, max_size=32).map(bytes.hex),
    size=st.builds(Size, st.integers(1, 60_000), st.integers(1, 60_000)),
    captions=st.lists(TEXT, max_size=3).map(tuple),
    class_words=TEXT,
    repeats=st.integers(1, 100),
    weight=st.floats(0.01, 100),
    regularisation=st.booleans(),
    held_out=st.booleans(),
    mask=TEXT,
    mask_key=st.sampled_from(["", "alpha", "0" * 64]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(EXAMPLES, max_size=20))
def test_nothing_changes_in_columns(examples: list[Example]) -> None:
    table = ExampleTable.of(examples)
    assert list(table) == examples
    assert [table[place] for place in range(len(table))] == examples
    assert table == examples
    assert table.numbers("repeats").tolist() == [example.repeats for example in examples]
    assert table.numbers("held_out").tolist() == [example.held_out for example in examples]
    assert list(table[1:]) == examples[1:]
    assert list(table.select(table.numbers("held_out").astype(np.bool_))) == [e for e in examples if e.held_out]
    if examples:
        assert table[-1] == examples[-1]


def test_many_examples_weigh_little_and_come_out_in_order(tmp_path: Path) -> None:
    builder = ExampleTableBuilder()
    for number in range(20_000):
        builder.append(
            Example(source=0, locator=f"{number}.png", name=f"{number}.png", key=f"{number:064x}", size=Size(8, 9))
        )
    table = builder.finish()
    assert len(table) == 20_000
    assert table[12_345].name == "12345.png"
    assert [example.name for example in table.take([7, 4097, 3])] == ["7.png", "4097.png", "3.png"]
    table.write(tmp_path / "table.arrow")
    assert (tmp_path / "table.arrow").stat().st_size < 20_000 * 250
