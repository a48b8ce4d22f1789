"""Pictures that are kept back: which they are, and that asking for them changes nothing."""

from collections.abc import Sequence

import numpy as np
import pytest

from trainer.core.clock import Clock
from trainer.data.example import Example, Size
from trainer.data.examples import ExampleTable
from trainer.evaluation.held_out import LARGE, HeldOut, HeldOutSettings
from trainer.objective.objective import Objective


def table(count: int, *, ordinary: int = 0, doubled: int = 0) -> ExampleTable:
    """`count` pictures, the last `doubled` of them copies of the first; then `ordinary` regularisation pictures."""
    keys = [f"{number:064x}" for number in range(count - doubled)]
    keys += keys[:doubled] + [f"{number + 1000:064x}" for number in range(ordinary)]
    return ExampleTable.of(
        Example(source=0, locator=key, name=key, key=key, size=Size(64, 64), regularisation=place >= count)
        for place, key in enumerate(keys)
    )


def kept(examples: ExampleTable) -> set[str]:
    return {example.key for example in examples if example.held_out}


@pytest.mark.parametrize("count", [1, 6, 74, LARGE - 1])
def test_small_sets_keep_every_picture(count: int) -> None:
    examples = table(count, ordinary=2 * LARGE)
    assert HeldOutSettings().kept_back(examples) is examples


def test_large_sets_keep_some_back_and_never_ordinary_pictures() -> None:
    examples = HeldOutSettings().kept_back(table(LARGE, ordinary=50))
    assert len(kept(examples)) == 16
    assert not any(example.regularisation for example in examples if example.held_out)
    assert len(examples) == LARGE + 50


def test_the_choice_follows_from_contents_and_seed_alone() -> None:
    examples = table(60)
    settings = HeldOutSettings(share=0.1)
    chosen = kept(settings.kept_back(examples))
    assert len(chosen) == 6
    turned = examples.take(np.random.default_rng(0).permutation(60))
    assert kept(settings.kept_back(turned)) == chosen
    assert kept(HeldOutSettings(share=0.1, seed=1).kept_back(examples)) != chosen


def test_a_copy_of_a_picture_that_is_kept_back_is_kept_back_too() -> None:
    examples = HeldOutSettings(share=0.5).kept_back(table(40, doubled=20))
    assert {example.key for example in examples if not example.held_out}.isdisjoint(kept(examples))
    assert sum(example.held_out for example in examples) == 2 * len(kept(examples)) == 20


def test_one_picture_always_stays() -> None:
    examples = HeldOutSettings(share=0.5).kept_back(table(2))
    assert [example.held_out for example in examples].count(False) == 1
    assert not kept(HeldOutSettings(share=0).kept_back(table(40)))


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [0, 10]), (4, [0, 4, 8, 10])], ids=["at the ends", "on the way and at the ends"]
)
def test_when_they_are_asked(every: int, steps: Sequence[int]) -> None:
    model = None
    held_out = HeldOut(batches=(), every=every, objective=Objective(), model=model)  # pyright: ignore[reportArgumentType]
    clock = Clock(steps=10, batches_per_epoch=1)
    due = [0] if held_out.due(clock) else []
    for _ in range(10):
        clock.tick(1)
        due += [clock.step] if held_out.due(clock) else []
    assert due == steps
