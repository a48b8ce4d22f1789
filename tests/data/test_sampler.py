"""Every picture exactly as often as its repeats say, for any batch, any workers and any number of processes."""

import sys
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.core.seeds import Seeds
from trainer.data.sampler import BatchPlan, BucketSampler

SEEDS = Seeds(11)


@dataclass(frozen=True)
class Pictures:
    """Some pictures: their buckets, and how often an epoch shows them."""

    bucket_of: list[int]
    repeats: list[int]

    def sampler(self, batch: int, *, world: int = 1, rank: int = 0) -> BucketSampler:
        numbers = np.array(self.bucket_of, dtype=np.int32)
        return BucketSampler(numbers, batch, SEEDS, repeats=np.array(self.repeats), world=world, rank=rank)

    def of_all_processes(self, batch: int, world: int) -> list[BucketSampler]:
        return [self.sampler(batch, world=world, rank=rank) for rank in range(world)]


@st.composite
def some_pictures(draw: st.DrawFn) -> Pictures:
    bucket_of = draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))
    return Pictures(bucket_of, draw(st.lists(st.integers(1, 4), min_size=len(bucket_of), max_size=len(bucket_of))))


@settings(deadline=None)
@given(pictures=some_pictures(), batch=st.integers(1, 9), world=st.integers(1, 5), epoch=st.integers(0, 50))
def test_an_epoch_shows_every_picture_as_often_as_its_repeats(
    pictures: Pictures, batch: int, world: int, epoch: int
) -> None:
    samplers = pictures.of_all_processes(batch, world)
    length = samplers[0].batches_per_epoch
    shown: Counter[int] = Counter()
    for number in range(epoch * length, (epoch + 1) * length):
        plans = [sampler.batch(number) for sampler in samplers]
        assert len({len(plan.slots) for plan in plans}) == 1  # every process has the same number
        assert 1 <= len(plans[0].slots) <= batch
        assert len({plan.total for plan in plans}) == 1
        slots = [slot for plan in plans for slot in plan.slots]
        assert slots == list(range(len(slots)))
        together = [example for plan in plans for example in plan.examples]
        assert len({pictures.bucket_of[example] for example in together}) == 1
        shown.update(together[: plans[0].total])
        assert set(together[plans[0].total :]) <= set(together[: plans[0].total])  # filling repeats its own batch
        assert len(together) - plans[0].total < world
    assert shown == Counter(dict(enumerate(pictures.repeats)))


@settings(deadline=None)
@given(pictures=some_pictures(), batch=st.integers(1, 5), workers=st.integers(1, 5), epoch=st.integers(0, 9))
def test_workers_that_share_the_numbers_show_every_picture_as_often(
    pictures: Pictures, batch: int, workers: int, epoch: int
) -> None:
    """Each worker has a sampler of its own, and takes every so manieth batch, over the borders of epochs too."""
    length = pictures.sampler(batch).batches_per_epoch
    shown: Counter[int] = Counter()
    for worker in range(workers):
        sampler = pictures.sampler(batch)
        mine = [number for number in range(2 * length * (epoch + 1)) if number % workers == worker]
        for plan in map(sampler.batch, mine):
            if plan.number // length == epoch:
                shown.update(plan.examples)
    assert shown == Counter(dict(enumerate(pictures.repeats)))


@settings(deadline=None)
@given(pictures=some_pictures(), batch=st.integers(1, 4), world=st.integers(2, 4), number=st.integers(0, 200))
def test_several_processes_see_what_one_would(pictures: Pictures, batch: int, world: int, number: int) -> None:
    one = pictures.sampler(batch * world).batch(number)
    parts = [sampler.batch(number) for sampler in pictures.of_all_processes(batch, world)]
    together = [example for part in parts for example in part.examples]
    assert tuple(together[: one.total]) == one.examples


@settings(deadline=None)
@given(pictures=some_pictures(), batch=st.integers(1, 9), number=st.integers(0, 500))
def test_a_batch_follows_from_its_number_alone(pictures: Pictures, batch: int, number: int) -> None:
    fresh, used = pictures.sampler(batch), pictures.sampler(batch)
    for earlier in (0, 3, number + 7):
        used.batch(earlier)
    assert used.batch(number) == fresh.batch(number)


@settings(deadline=None)
@given(pictures=some_pictures(), batch=st.integers(1, 9), epoch=st.integers(0, 50))
def test_the_order_is_that_of_the_first_release(pictures: Pictures, batch: int, epoch: int) -> None:
    """Written with lists: runs that were begun go on as they would have."""
    showings: dict[int, list[int]] = {}
    for example, (bucket, times) in enumerate(zip(pictures.bucket_of, pictures.repeats, strict=True)):
        showings.setdefault(bucket, []).extend([example] * times)
    batches: list[list[int]] = []
    for bucket, shown in sorted(showings.items()):
        order = SEEDS.permutation("order", epoch, bucket, length=len(shown))
        shuffled = [shown[place] for place in order]
        batches += [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    expected = [tuple(batches[place]) for place in SEEDS.permutation("batches", epoch, length=len(batches))]
    sampler = pictures.sampler(batch)
    numbers = range(epoch * len(expected), (epoch + 1) * len(expected))
    assert [sampler.batch(number).examples for number in numbers] == expected


def test_without_repeats_every_picture_is_shown_once() -> None:
    once = BucketSampler([0, 2, 0, 2, 2], 2, SEEDS)
    assert once.batches_per_epoch == 3
    said = BucketSampler([0, 2, 0, 2, 2], 2, SEEDS, repeats=[1] * 5)
    assert [once.batch(number) for number in range(9)] == [said.batch(number) for number in range(9)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = BucketSampler([0, 1] * 30, 4, Seeds(seed))
        length = sampler.batches_per_epoch
        return [i for number in range(epoch * length, (epoch + 1) * length) for i in sampler.batch(number).examples]

    orders = [tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def numbers_drawn(sampler: BucketSampler, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[BatchPlan]]:
    """The lengths of all permutations that two epochs' batches ask for."""
    drawn: list[int] = []
    randperm = torch.randperm

    def counted(length: int, *, generator: torch.Generator) -> torch.Tensor:
        drawn.append(length)
        return randperm(length, generator=generator)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "randperm", counted)
        plans = [sampler.batch(number) for number in range(2 * sampler.batches_per_epoch)]
    return drawn, plans


def test_an_order_is_drawn_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, plans = numbers_drawn(BucketSampler([0, 0, 0, 1, 1], 1, SEEDS), monkeypatch)
    assert drawn == [3, 2, 5] * 2
    assert {type(number) for plan in plans for number in (*plan.examples, *plan.slots, plan.total)} == {int}


def seconds_a_batch(count: int) -> float:
    sampler = BucketSampler(np.arange(count) % 7, 8, SEEDS)
    sampler.batch(0)
    taken: list[float] = []
    for _ in range(20):
        started = time.perf_counter()
        for number in range(10):
            sampler.batch(number)
        taken.append(time.perf_counter() - started)
    return min(taken) / 10  # the quickest round: what else the machine does is no part of it


def test_a_batch_costs_the_same_in_a_small_and_in_a_large_set() -> None:
    assert seconds_a_batch(100_000) < 2 * seconds_a_batch(100) + 1e-4


def test_a_million_pictures_are_planned_at_once_and_in_a_few_bytes() -> None:
    bucket_of = np.random.default_rng(0).integers(0, 40, 1_000_000, dtype=np.int32)
    repeats = np.ones(len(bucket_of), dtype=np.int32)
    started = time.perf_counter()
    sampler = BucketSampler(bucket_of, 8, SEEDS, repeats=repeats)
    plan = sampler.batch(0)
    assert time.perf_counter() - started < 2  # 0.15 s on a quiet machine
    assert len({bucket_of[example] for example in plan.examples}) == 1
    kept = [value for value in vars(sampler).values() if isinstance(value, np.ndarray)]
    assert sum(map(sys.getsizeof, kept)) < 5 * len(bucket_of)
    order = sampler._order(0)  # pyright: ignore[reportPrivateUsage]  what stays in memory is the point here
    assert order.showings.nbytes + order.batches.nbytes < 5 * len(bucket_of)


@pytest.mark.parametrize(("count", "batch", "world", "rank"), [(0, 1, 1, 0), (3, 0, 1, 0), (3, 1, 2, 2), (3, 1, 1, -1)])
def test_nonsense_is_refused(count: int, batch: int, world: int, rank: int) -> None:
    with pytest.raises(ValueError, match="a sampler needs"):
        BucketSampler([0] * count, batch, SEEDS, world=world, rank=rank)


@pytest.mark.parametrize("repeats", [[1, 1], [1, 0, 1], [1, -2, 1]])
def test_a_picture_without_a_showing_is_refused(repeats: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one showing"):
        BucketSampler([0, 0, 1], 2, SEEDS, repeats=repeats)
