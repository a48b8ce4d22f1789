"""Batches made ahead are those that would be made on the spot, and a thread in trouble says so at the right moment."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from trainer.assemble import assemble
from trainer.core.errors import DataError
from trainer.core.progress import Silence
from trainer.loop.ahead import Ahead, Ready, each_tensor, making
from trainer.loop.run import Run
from trainer.recipe.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture
def run(recipe_of: Callable[..., Recipe]) -> Run:
    return assemble(recipe_of(), resume=False, progress=Silence())


def maker(run: Run) -> Callable[[int], Ready]:
    return making(run.batches, run.objective, run.model, run.seeds, 0)


def same(one: Ready, other: Ready) -> bool:
    found: list[torch.Tensor] = []
    for ready in (one, other):
        each_tensor(ready, lambda tensor: found.append(tensor) or tensor)
    half = len(found) // 2
    return half > 4 and all(map(torch.equal, found[:half], found[half:])) and one.layers == other.layers


def test_batches_ahead_are_the_batches(run: Run) -> None:
    make = maker(run)
    with Ahead(make, CPU, end=7) as ahead:
        for number in [0, 1, 2, 5, 6, 3]:  # in order, with a jump, and back
            ready = ahead.take(number)
            assert ready.batch.number == number
            assert same(ready, make(number))


def test_the_objective_loses_nothing_by_drawing_early(run: Run) -> None:
    ready = maker(run)(3)

    def predict(noisy: torch.Tensor, t: torch.Tensor, _batch: object) -> torch.Tensor:
        return noisy * t[:, None, None, None]

    schedule, native = run.model.schedule, run.model.prediction
    early = run.objective.loss(predict, ready.batch, ready.drawn, native)
    late = run.objective(predict, run.batches.numbered(3), schedule, native, run.seeds)
    assert torch.equal(early.value, late.value)


def test_they_are_made_before_they_are_asked_for_and_none_beyond_the_end(run: Run) -> None:
    make, made = maker(run), list[int]()

    def watched(number: int) -> Ready:
        made.append(number)
        return make(number)

    with Ahead(watched, CPU, end=4) as ahead:
        for number in range(4):
            ahead.take(number)
            deadline = time.monotonic() + 20
            while len(made) < min(number + 3, 4) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert made == list(range(min(number + 3, 4)))


def test_what_goes_wrong_is_raised_when_its_batch_is_asked_for(run: Run) -> None:
    make = maker(run)

    def fails(number: int) -> Ready:
        if number == 2:
            raise DataError("gone", where="here", mend="")
        return make(number)

    before = threading.active_count()
    with Ahead(fails, CPU, end=9) as ahead:
        ahead.take(0)
        ahead.take(1)
        with pytest.raises(DataError, match="gone"):
            ahead.take(2)
        assert ahead.take(3).batch.number == 3  # nobody hangs
    assert threading.active_count() == before


def test_nothing_is_made_while_the_encoders_are_somebody_else_s(run: Run) -> None:
    make, made = maker(run), list[int]()

    def watched(number: int) -> Ready:
        made.append(number)
        return make(number)

    with Ahead(watched, CPU, end=9) as ahead:
        ahead.take(0)
        with ahead.resting():
            before = list(made)
            time.sleep(0.2)
            assert made == before
        assert ahead.take(1).batch.number == 1
