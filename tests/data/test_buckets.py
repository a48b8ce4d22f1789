"""Laws of the buckets: equal areas, nearest shapes, and what becomes of those with few pictures."""

import math
import time
from collections import Counter
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.core.errors import RecipeError
from trainer.data.buckets import AssignedBuckets, Bucket, BucketRules, BucketTable, assign, assign_all, bucket_table
from trainer.data.example import Size

sides = st.integers(1, 20_000)
sizes = st.builds(Size, sides, sides)


@st.composite
def tables(draw: st.DrawFn, small: Literal["shrink", "move"] = "shrink") -> BucketTable:
    scale = draw(st.sampled_from([4, 8]))
    rules = BucketRules(
        step=draw(st.sampled_from([None, scale, 2 * scale, 8 * scale])),
        max_aspect=draw(st.floats(1, 8)),
        upscale=draw(st.booleans()),
        small=small,
    )
    return bucket_table(draw(st.integers(64, 1536)), rules, scale)


@given(table=tables())
def test_buckets_are_of_equal_area_and_come_in_mirrored_pairs(table: BucketTable) -> None:
    square = max(bucket.width for bucket in table.buckets if bucket.width == bucket.height)
    assert len(set(table.buckets)) == len(table.buckets)
    assert {Bucket(b.height, b.width) for b in table.buckets} == set(table.buckets)
    for bucket in table.buckets:
        assert bucket.width % table.step == bucket.height % table.step == 0
        assert 0.7 * square**2 <= bucket.width * bucket.height <= square**2
        assert max(bucket) <= min(bucket) * table.rules.max_aspect


@given(table=tables(), size=sizes)
def test_portrait_and_landscape_are_treated_alike(table: BucketTable, size: Size) -> None:
    bucket, mirrored = assign(size, table), assign(Size(size.height, size.width), table)
    assert mirrored == (bucket if size.width == size.height else Bucket(bucket.height, bucket.width))


@given(table=tables(), size=sizes)
def test_every_picture_gets_a_bucket_near_its_shape(table: BucketTable, size: Size) -> None:
    bucket = assign(size, table)
    assert min(bucket) > 0
    assert bucket.width % table.step == bucket.height % table.step == 0
    assert max(bucket) <= min(bucket) * max(table.rules.max_aspect, 1)
    if table.rules.upscale:
        aspect = math.log(size.width / size.height)
        best = min(abs(math.log(b.width / b.height) - aspect) for b in table.buckets)
        assert abs(math.log(bucket.width / bucket.height) - aspect) <= best + 1e-9
    elif min(size) >= table.step:
        assert bucket.width <= size.width
        assert bucket.height <= size.height


def test_the_border_between_two_shapes_lies_in_the_middle_of_their_logarithms() -> None:
    table = bucket_table(1024, BucketRules(), 8)
    for lower, upper in pairwise(table.buckets):
        border = math.sqrt(lower.width / lower.height * upper.width / upper.height)
        assert assign(Size(round(border * 99_900), 100_000), table) == lower
        assert assign(Size(round(border * 100_100), 100_000), table) == upper


@given(table=tables())
def test_a_picture_of_a_bucket_s_own_size_is_in_that_bucket(table: BucketTable) -> None:
    own = [Size(*bucket) for bucket in table.buckets]
    assert tuple(assign_all(own, np.ones(len(own), dtype=np.int32), table, 1)) == table.buckets


SDXL = [(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (1536, 640)]


@pytest.mark.parametrize("upscale", [True, False])
@pytest.mark.parametrize(("width", "height"), SDXL)
def test_the_sizes_that_sdxl_was_trained_on_lose_nothing(width: int, height: int, upscale: bool) -> None:
    """With sd-scripts' own defaults, 832 x 1216 lands in 704 x 1024 and loses 29 % of its pixels."""
    table = bucket_table(1024, BucketRules(upscale=upscale), 8)
    assert assign(Size(width, height), table) == Bucket(width, height)
    assert assign(Size(height, width), table) == Bucket(height, width)
    assert assign(Size(2 * height, 2 * width), table) == Bucket(height, width)


def test_small_pictures_keep_their_size_where_they_are_not_enlarged() -> None:
    table = bucket_table(1024, BucketRules(upscale=False, max_aspect=50), 8)
    assert assign(Size(500, 700), table) == Bucket(448, 640)  # as sd-scripts
    assert assign(Size(100, 3000), table) == Bucket(64, 2944)  # as sd-scripts
    assert assign(Size(100, 3000), bucket_table(1024, BucketRules(upscale=False), 8)) == Bucket(64, 256)
    assert assign(Size(5, 7), table) == Bucket(64, 64)  # there is none smaller


@pytest.mark.parametrize("step", [32, 64])
def test_steps_of_a_family(step: int) -> None:
    table = bucket_table(1024, BucketRules(step=step), 8)
    assert all(side % step == 0 for bucket in table.buckets for side in bucket)
    assert len(bucket_table(1024, BucketRules(step=32), 8).buckets) > len(bucket_table(1024, BucketRules(), 8).buckets)


def test_known_tables() -> None:
    assert len(bucket_table(512, BucketRules(), 8).buckets) == 17  # as sd-scripts
    large = bucket_table(1024, BucketRules(), 8)
    assert assign(Size(832, 1216), large) == Bucket(832, 1216)
    assert bucket_table(64, BucketRules(), 4).step == 16
    assert Bucket(48, 80) in bucket_table(64, BucketRules(), 4).buckets
    assert bucket_table(512, BucketRules(max_aspect=1), 8).buckets == (Bucket(512, 512),)


def test_a_step_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="multiple of 8"):
        bucket_table(512, BucketRules(step=20), 8)
    with pytest.raises(RecipeError, match="less than one bucket step"):
        bucket_table(32, BucketRules(), 8)


def tally(sizes: list[Size], showings: list[int], table: BucketTable, batch: int) -> list[Bucket]:
    return list(assign_all(sizes, np.array(showings, dtype=np.int32), table, batch))


@settings(deadline=None)
@given(table=tables(), several=st.lists(sizes, max_size=20))
def test_many_pictures_are_assigned_as_each_alone(table: BucketTable, several: list[Size]) -> None:
    found = assign_all(several, np.ones(len(several), dtype=np.int32), table, 4)
    assert list(found) == [assign(size, table) for size in several]
    assert found.shapes == tuple(sorted(set(found)))
    assert [found[place] for place in range(len(found))] == list(found) == list(found[:3]) + list(found[3:])


@given(several=st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=20))
def test_pictures_of_several_resolutions_share_their_buckets(several: list[tuple[Size, bool]]) -> None:
    tables = [bucket_table(resolution, BucketRules(upscale=False), 8) for resolution in (512, 1024)]
    large = np.array([is_large for _, is_large in several])
    parts = [
        (places, assign_all([several[place][0] for place in places], np.ones(len(places), dtype=np.int32), table, 1))
        for table, places in zip(tables, (np.flatnonzero(~large), np.flatnonzero(large)), strict=True)
    ]
    joined = AssignedBuckets.joined(parts)
    assert list(joined) == [assign(size, tables[is_large]) for size, is_large in several]
    assert joined.shapes == tuple(sorted(set(joined)))


@st.composite
def sets(draw: st.DrawFn) -> tuple[list[Size], list[int]]:
    """A few sizes, each of several pictures, so that buckets fill; of few shapes, so that they compete."""
    small = st.builds(Size, st.integers(2, 6), st.integers(2, 6))
    pool = [
        Size(shape.width * side, shape.height * side)
        for shape in draw(st.lists(small, min_size=1, max_size=4))
        for side in draw(st.lists(st.sampled_from([70, 100, 128, 256, 300]), min_size=1, max_size=3))
    ]
    pictures = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=40))
    return pictures, draw(st.lists(st.integers(1, 5), min_size=len(pictures), max_size=len(pictures)))


@settings(deadline=None)
@given(table=tables(small="move"), pictures=sets(), batch=st.integers(1, 24))
def test_only_pictures_of_small_buckets_move_and_only_to_full_ones(
    table: BucketTable, pictures: tuple[list[Size], list[int]], batch: int
) -> None:
    several, showings = pictures
    homes = [assign(size, table) for size in several]
    found = tally(several, showings, table, batch)
    shown: Counter[Bucket] = Counter()
    for bucket, times in zip(homes, showings, strict=True):
        shown[bucket] += times
    full = {bucket for bucket, times in shown.items() if times >= batch}
    assert len(found) == len(several)
    for size, home, bucket in zip(several, homes, found, strict=True):
        if home in full or not full:
            assert bucket == home
        open_to = {one for one in full if may_move(size, home, one, table.rules)}
        if home not in full and not open_to:
            assert bucket == home
        if home not in full and open_to:
            assert bucket in open_to
            assert away(size, bucket) <= min(away(size, one) for one in open_to) + 1e-9


def away(size: Size, bucket: Bucket) -> float:
    return abs(math.log(bucket.width / bucket.height) - math.log(size.width / size.height))


def may_move(size: Size, home: Bucket, bucket: Bucket, rules: BucketRules) -> bool:
    fills = bucket.width <= size.width and bucket.height <= size.height
    return (rules.upscale or fills) and bucket.width * bucket.height >= 0.7 * home.width * home.height


@settings(deadline=None)
@given(table=tables(small="move"), pictures=sets(), batch=st.integers(1, 24), seed=st.integers(0, 99))
def test_the_order_of_the_pictures_does_not_matter(
    table: BucketTable, pictures: tuple[list[Size], list[int]], batch: int, seed: int
) -> None:
    several, showings = pictures
    order = np.random.default_rng(seed).permutation(len(several)).tolist()
    found = tally(several, showings, table, batch)
    shuffled = tally([several[place] for place in order], [showings[place] for place in order], table, batch)
    assert shuffled == [found[place] for place in order]


def test_a_lonely_bucket_shrinks_or_moves_as_the_rules_say() -> None:
    pictures = [Size(512, 512)] * 4 + [Size(512, 600)] + [Size(1000, 400)] * 2
    stay, move = (bucket_table(512, BucketRules(small=small), 8) for small in ("shrink", "move"))
    assert tally(pictures, [1] * 7, stay, 4)[4:] == [Bucket(448, 576), Bucket(768, 320), Bucket(768, 320)]
    assert tally(pictures, [1] * 7, move, 4) == [Bucket(512, 512)] * 7
    assert tally(pictures, [1] * 4 + [4, 2, 2], move, 4) == tally(pictures, [1] * 7, stay, 4)  # repeats fill a bucket
    assert tally(pictures, [1] * 7, move, 5) == tally(pictures, [1] * 7, stay, 5)  # none has enough


def test_a_lonely_picture_goes_to_the_nearest_full_shape() -> None:
    table = bucket_table(512, BucketRules(small="move"), 8)
    pictures = [Size(384, 640)] * 4 + [Size(512, 512)] * 4 + [Size(640, 384)] * 4 + [Size(768, 320)]
    assert tally(pictures, [1] * 13, table, 4)[-1] == Bucket(640, 384)


def test_a_small_picture_is_not_enlarged_by_a_move() -> None:
    pictures = [Size(600, 600)] * 4 + [Size(560, 560), Size(700, 580)]
    small = bucket_table(1024, BucketRules(small="move", upscale=False), 8)
    assert tally(pictures, [1] * 6, small, 4)[3:] == [Bucket(576, 576), Bucket(512, 512), Bucket(576, 576)]


def test_a_large_picture_does_not_move_among_thumbnails() -> None:
    table = bucket_table(1024, BucketRules(upscale=False, small="move"), 8)
    found = tally([Size(64, 64)] * 8 + [Size(1024, 1024)], [1] * 9, table, 8)
    assert found[-1] == Bucket(1024, 1024)


def test_a_million_pictures_are_assigned_in_a_few_seconds() -> None:
    random = np.random.default_rng(0)
    several = random.integers(300, 4000, (1_000_000, 2), dtype=np.int32)
    table = bucket_table(1024, BucketRules(small="move"), 8)
    started = time.perf_counter()
    found = assign_all(several, np.ones(len(several), dtype=np.int32), table, 8)
    assert time.perf_counter() - started < 10  # 0.4 s on a quiet machine
    assert found.numbers.nbytes == 4_000_000
    for place in random.integers(0, len(several), 50).tolist():
        assert found[place] == assign(Size(*several[place].tolist()), table)
