"""Laws of the buckets and of the crop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.core.errors import RecipeError
from trainer.data.buckets import Bucket, BucketRules, BucketTable, assign, bucket_table
from trainer.data.cropping import fit, place
from trainer.data.example import Size

sides = st.integers(1, 20_000)
sizes = st.builds(Size, sides, sides)


@st.composite
def tables(draw: st.DrawFn) -> BucketTable:
    scale = draw(st.sampled_from([4, 8]))
    rules = BucketRules(
        step=draw(st.sampled_from([None, scale, 2 * scale, 8 * scale])),
        max_aspect=draw(st.floats(1, 8)),
        upscale=draw(st.booleans()),
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


@given(size=sizes, table=tables(), mirrored=st.booleans())
def test_the_crop_lies_inside_the_resized_picture_and_in_its_middle(
    size: Size, table: BucketTable, mirrored: bool
) -> None:
    bucket = assign(size, table)
    placed = place(size, bucket, mirrored=mirrored)
    right, below = placed.resized.width - bucket.width - placed.left, placed.resized.height - bucket.height - placed.top
    assert min(placed.left, placed.top, right, below) >= 0
    assert abs(right - placed.left) <= 1
    assert abs(below - placed.top) <= 1
    assert placed.left == 0 or placed.top == 0 or max(placed.left, placed.top) <= 1  # one side fits


def test_the_crop_of_sdxls_example_is_recorded_as_it_is() -> None:
    """A 1000 x 1500 picture in 832 x 1216: sd-scripts records left 10, top 0, and crops top 16."""
    placed = place(Size(1000, 1500), Bucket(832, 1216))
    assert (placed.resized, placed.top, placed.left) == (Size(832, 1248), 16, 0)


@pytest.mark.parametrize(("size", "bucket"), [((200, 100), (64, 64)), ((90, 301), (32, 64)), ((20, 20), (64, 32))])
def test_the_pixels_are_those_of_resizing_and_cropping(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    pixels, placed = fit(image, Bucket(*bucket))
    whole = image.resize(placed.resized, Image.Resampling.LANCZOS)
    box = (placed.left, placed.top, placed.left + bucket[0], placed.top + bucket[1])
    expected = torch.from_numpy(np.array(whole.crop(box))).permute(2, 0, 1).float() / 127.5 - 1
    assert pixels.shape == (3, bucket[1], bucket[0])
    assert (pixels - expected).abs().max() <= 3 / 127.5
    flipped, _ = fit(image, Bucket(*bucket), mirrored=True)
    assert torch.equal(flipped, pixels.flip(-1))


def test_black_and_white_are_the_ends_of_the_range() -> None:
    for shade, value in ((0, -1.0), (255, 1.0)):
        pixels, _ = fit(Image.new("RGB", (10, 30), (shade,) * 3), Bucket(16, 16))
        assert torch.equal(pixels, torch.full((3, 16, 16), value))


def test_a_very_long_picture_does_not_fill_the_memory() -> None:
    pixels, placed = fit(Image.new("RGB", (1, 60_000)), Bucket(256, 1024))
    assert pixels.shape == (3, 1024, 256)
    assert placed.resized.height == 256 * 60_000  # had it been resized as a whole: 11 GB
