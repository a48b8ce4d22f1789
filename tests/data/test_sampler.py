"""Every instance exactly once an epoch, for any batch and any number of processes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.seeds import Seeds
from trainer.data.sampler import BucketSampler

buckets = st.lists(st.integers(0, 4), min_size=1, max_size=60)
SEEDS = Seeds(11)


@given(bucket_of=buckets, batch=st.integers(1, 9), world=st.integers(1, 5), epoch=st.integers(0, 50))
def test_an_epoch_shows_every_instance_exactly_once(bucket_of: list[int], batch: int, world: int, epoch: int) -> None:
    samplers = [BucketSampler(bucket_of, batch, SEEDS, world=world, rank=rank) for rank in range(world)]
    length = samplers[0].batches_per_epoch
    shown: Counter[int] = Counter()
    for number in range(epoch * length, (epoch + 1) * length):
        plans = [sampler.batch(number) for sampler in samplers]
        assert len({len(plan.slots) for plan in plans}) == 1  # every process has the same number
        assert 1 <= len(plans[0].slots) <= batch
        assert len({plan.total for plan in plans}) == 1
        slots = [slot for plan in plans for slot in plan.slots]
        assert slots == list(range(len(slots)))
        together = [instance for plan in plans for instance in plan.instances]
        assert len({bucket_of[instance] for instance in together}) == 1
        shown.update(together[: plans[0].total])
        assert set(together[plans[0].total :]) <= set(together[: plans[0].total])  # filling repeats its own batch
        assert len(together) - plans[0].total < world
    assert shown == Counter(range(len(bucket_of)))


@given(bucket_of=buckets, batch=st.integers(1, 4), world=st.integers(2, 4), number=st.integers(0, 200))
def test_several_processes_see_what_one_would(bucket_of: list[int], batch: int, world: int, number: int) -> None:
    one = BucketSampler(bucket_of, batch * world, SEEDS).batch(number)
    parts = [BucketSampler(bucket_of, batch, SEEDS, world=world, rank=rank).batch(number) for rank in range(world)]
    together = [instance for part in parts for instance in part.instances]
    assert tuple(together[: one.total]) == one.instances


@given(bucket_of=buckets, batch=st.integers(1, 9), number=st.integers(0, 500))
def test_a_batch_follows_from_its_number_alone(bucket_of: list[int], batch: int, number: int) -> None:
    fresh, used = BucketSampler(bucket_of, batch, SEEDS), BucketSampler(bucket_of, batch, SEEDS)
    for earlier in (0, 3, number + 7):
        used.batch(earlier)
    assert used.batch(number) == fresh.batch(number)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = BucketSampler([0, 1] * 30, 4, Seeds(seed))
        length = sampler.batches_per_epoch
        return [i for number in range(epoch * length, (epoch + 1) * length) for i in sampler.batch(number).instances]

    orders = [tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@pytest.mark.parametrize(("count", "batch", "world", "rank"), [(0, 1, 1, 0), (3, 0, 1, 0), (3, 1, 2, 2), (3, 1, 1, -1)])
def test_nonsense_is_refused(count: int, batch: int, world: int, rank: int) -> None:
    with pytest.raises(ValueError, match="a sampler needs"):
        BucketSampler([0] * count, batch, SEEDS, world=world, rank=rank)
