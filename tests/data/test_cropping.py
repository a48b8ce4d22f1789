"""Laws of the crop: one function decides it for picture, mirror image and mask, and what it says is what is cut."""

import resource
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from trainer.data.buckets import Bucket
from trainer.data.cropping import CropRules, Cut, Placement, counts_nowhere, cuts_of, fit, fit_mask, place
from trainer.data.encoding import as_numbers
from trainer.data.example import Size

CENTRE = Cut()
SCALE = 8

lengths = st.integers(1, 60_000)
sizes = st.builds(Size, lengths, lengths)
small_sizes = st.builds(Size, st.integers(20, 400), st.integers(20, 400))
bucket_sides = st.integers(1, 20).map(lambda columns: columns * SCALE)
buckets = st.builds(Bucket, bucket_sides, bucket_sides)
cuts = st.builds(Cut, st.booleans(), st.floats(0, 1))
rules = st.builds(CropRules, places=st.integers(1, 9))


def fitted(image: Image.Image, bucket: Bucket, cut: Cut, size: Size | None = None) -> tuple[Tensor, Placement]:
    """As the encoder gets it: [3 H W] in -1 .. 1."""
    pixels, placed = fit(image, bucket, cut, size)
    return as_numbers(pixels[None])[0], placed


def fitted_mask(mask: Image.Image, bucket: Bucket, cut: Cut, scale: int, size: Size | None = None) -> Tensor:
    """[1 h w]."""
    return torch.from_numpy(fit_mask(mask, bucket, cut, scale, size))


def spare(placed: Placement, bucket: Bucket) -> tuple[int, int]:
    """Pixels that stick out on the right and below."""
    return (
        placed.resized.width - bucket.width - placed.left,
        placed.resized.height - bucket.height - placed.top,
    )


@given(size=sizes, bucket=buckets, cut=cuts)
def test_the_crop_lies_inside_the_smallest_picture_that_covers_the_bucket(size: Size, bucket: Bucket, cut: Cut) -> None:
    placed = place(size, bucket, cut)
    assert min(placed.left, placed.top, *spare(placed, bucket)) >= 0
    assert placed.resized.width == bucket.width or placed.resized.height == bucket.height
    factors = (placed.resized.width / size.width, placed.resized.height / size.height)
    covering = max(bucket.width / size.width, bucket.height / size.height)
    assert factors[0] == pytest.approx(covering, abs=1 / size.width)
    assert factors[1] == pytest.approx(covering, abs=1 / size.height)


@given(size=sizes, bucket=buckets, along=st.floats(0, 1))
def test_a_mirrored_cut_mirrors(size: Size, bucket: Bucket, along: float) -> None:
    plain, mirrored = place(size, bucket, Cut(False, along)), place(size, bucket, Cut(True, along))
    assert mirrored.left == spare(plain, bucket)[0]
    assert (mirrored.top, mirrored.resized) == (plain.top, plain.resized)


@given(size=sizes, bucket=buckets)
def test_places_go_from_rim_to_rim_by_way_of_the_centre(size: Size, bucket: Bucket) -> None:
    first, centre, last = (place(size, bucket, Cut(place=along)) for along in (0.0, 0.5, 1.0))
    assert (first.left, first.top) == (0, 0)
    assert spare(last, bucket) == (0, 0)
    for before, after in zip((centre.left, centre.top), spare(centre, bucket), strict=True):
        assert 0 <= after - before <= 1


@given(size=sizes, bucket=buckets, rules=rules, flip=st.booleans())
def test_cuts_are_distinct_evenly_spread_and_as_many_as_can_be(
    size: Size, bucket: Bucket, rules: CropRules, flip: bool
) -> None:
    found = cuts_of(size, bucket, rules, flip)
    plain = [cut for cut in found if not cut.mirrored]
    placed = [place(size, bucket, cut) for cut in plain]
    offsets = [one.left + one.top for one in placed]
    room = sum(spare(placed[0], bucket)) + offsets[0]
    assert offsets == sorted(set(offsets))
    assert len(plain) == min(rules.places, room + 1)
    if len(plain) > 1:
        steps = [after - before for before, after in pairwise(offsets)]
        assert (offsets[0], offsets[-1]) == (0, room)
        assert max(steps) - min(steps) <= 1
    assert found == (*plain, *(cut._replace(mirrored=True) for cut in plain if flip))


def test_a_picture_that_fits_has_one_cut_and_two_when_it_is_flipped() -> None:
    size, bucket = Size(640, 960), Bucket(64, 96)
    assert cuts_of(size, bucket, CropRules(places=5), flip=False) == (CENTRE,)
    assert cuts_of(size, bucket, CropRules(places=5), flip=True) == (CENTRE, Cut(mirrored=True))
    assert cuts_of(Size(640, 970), bucket, CropRules(), flip=False) == (CENTRE,)


@pytest.mark.parametrize("places", [0, 101])
def test_a_senseless_number_of_places_is_refused(places: int) -> None:
    with pytest.raises(ValidationError, match="places"):
        CropRules(places=places)


def test_the_crop_of_sdxls_example_is_recorded_as_it_is() -> None:
    """A 1000 x 1500 picture in 832 x 1216: sd-scripts records left 10, top 0, and crops top 16."""
    placed = place(Size(1000, 1500), Bucket(832, 1216), CENTRE)
    assert (placed.resized, placed.top, placed.left) == (Size(832, 1248), 16, 0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize(
    ("size", "bucket", "along", "box"),
    [
        ((200, 100), (64, 64), 0.5, (50, 0, 150, 100)),
        ((200, 100), (64, 64), 0.0, (0, 0, 100, 100)),
        ((200, 100), (64, 64), 1.0, (100, 0, 200, 100)),
        ((64, 192), (32, 64), 0.25, (0, 16, 64, 144)),
        ((20, 20), (64, 32), 0.5, (0, 5, 20, 15)),
    ],
)
def test_the_pixels_are_exactly_those_of_the_box(
    size: tuple[int, int], bucket: tuple[int, int], along: float, box: tuple[int, int, int, int]
) -> None:
    image = noise(*size)
    pixels, _ = fitted(image, Bucket(*bucket), Cut(place=along))
    assert torch.equal(pixels, pixels_of(image.resize(bucket, Image.Resampling.LANCZOS, box=box)))


@pytest.mark.parametrize(("size", "bucket"), [((200, 100), (64, 64)), ((90, 301), (32, 64)), ((20, 20), (64, 32))])
def test_the_pixels_are_about_those_of_resizing_and_cropping(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    image = noise(*size)
    for cut in cuts_of(Size(*size), Bucket(*bucket), CropRules(places=3), flip=False):
        pixels, placed = fitted(image, Bucket(*bucket), cut)
        whole = image.resize(placed.resized, Image.Resampling.LANCZOS)
        box = (placed.left, placed.top, placed.left + bucket[0], placed.top + bucket[1])
        assert pixels.shape == (3, bucket[1], bucket[0])
        assert (pixels - pixels_of(whole.crop(box))).abs().max() <= 3 / 127.5
        flipped, _ = fitted(image, Bucket(*bucket), cut._replace(mirrored=True))
        assert torch.equal(flipped, pixels.flip(-1))


def slopes(size: Size) -> Image.Image:
    """Red grows from left to right, green from top to bottom: each colour says where it was."""
    across = np.broadcast_to((np.arange(size.width) + 0.5) / size.width * 255, (size.height, size.width))
    down = np.broadcast_to(((np.arange(size.height) + 0.5) / size.height * 255)[:, None], across.shape)
    return Image.fromarray(np.stack((across, down, 0 * down), axis=-1).round().astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(size=small_sizes, bucket=buckets, cut=cuts)
def test_the_recorded_geometry_is_what_was_cut(size: Size, bucket: Bucket, cut: Cut) -> None:
    pixels, placed = fitted(slopes(size), bucket, cut)
    seen = (pixels[:2] + 1) * 127.5
    column = (np.arange(bucket.width) + 0.5 + placed.left) / placed.resized.width
    row = (np.arange(bucket.height) + 0.5 + placed.top) / placed.resized.height
    across = torch.from_numpy(1 - column if cut.mirrored else column) * 255
    down = torch.from_numpy(row) * 255
    # Half a source pixel is where a rim ends, and colours are rounded twice.
    assert (seen[0] - across[None]).abs().max() <= 2 + 255 / size.width
    assert (seen[1] - down[:, None]).abs().max() <= 2 + 255 / size.height


@settings(max_examples=60, deadline=None)
@given(size=small_sizes, bucket=buckets, cut=cuts, scale=st.sampled_from([4, 8]), shrunk=st.booleans(), data=st.data())
def test_mask_and_picture_stay_together(
    size: Size, bucket: Bucket, cut: Cut, scale: int, shrunk: bool, data: st.DataObject
) -> None:
    """A red box whose mask is that box: after fitting, the mask's rims are the colour's, to half a latent place."""
    assume(max(size) < 20 * min(size))
    left, right = sorted((data.draw(st.integers(0, size.width)), data.draw(st.integers(0, size.width))))
    top, below = sorted((data.draw(st.integers(0, size.height)), data.draw(st.integers(0, size.height))))
    picture, mask = Image.new("RGB", size, "black"), Image.new("L", size, 0)
    picture.paste((255, 0, 0), (left, top, right, below))
    mask.paste(255, (left, top, right, below))
    half = Size(-(-size.width // 2), -(-size.height // 2))
    pixels, _ = fitted(picture.resize(half, Image.Resampling.BOX) if shrunk else picture, bucket, cut, size)
    places = fitted_mask(mask, bucket, cut, scale)
    assert places.shape == (1, bucket.height // scale, bucket.width // scale)
    assert places.dtype == torch.float32
    assert 0 <= float(places.min()) <= float(places.max()) <= 1
    red = ((pixels[0] + 1) / 2).clamp(0, 1)
    # The area, column by column and row by row: a rim that lay half a place off would show as half of it.
    for axis in (0, 1):
        by_pixels = red.mean(axis).unflatten(0, (-1, scale)).mean(-1)
        by_mask = places[0].mean(axis)
        # A source pixel that the other axis' rim cuts through counts whole or not at all, in every row alike.
        one = blur(size, bucket, cut, scale)
        rims = one * len(by_mask) / places.shape[1 + axis]
        assert (by_pixels.cumsum(0) - by_mask.cumsum(0)).abs().max() <= 0.5 + 2 * one + rims


def blur(size: Size, bucket: Bucket, cut: Cut, scale: int) -> float:
    """A source pixel in latent places: where a picture is enlarged, its rims are no sharper."""
    resized = place(size, bucket, cut).resized
    return max(resized.width / size.width, resized.height / size.height) / scale


@pytest.mark.parametrize("scale", [4, 8])
def test_a_mask_is_the_mean_over_each_place(scale: int) -> None:
    bucket = Bucket(8 * scale, 4 * scale)
    mask = Image.new("L", bucket, 0)
    mask.paste(255, (scale, scale, 3 * scale + scale // 4, 2 * scale))
    places = fitted_mask(mask, bucket, CENTRE, scale)
    expected = torch.zeros(1, 4, 8)
    expected[0, 1, 1:3] = 1
    expected[0, 1, 3] = 0.25
    torch.testing.assert_close(places, expected, rtol=0, atol=1 / 255)
    assert torch.equal(fitted_mask(mask, bucket, Cut(mirrored=True), scale), places.flip(-1))


@given(size=small_sizes, bucket=buckets, cut=cuts)
def test_a_white_mask_is_exactly_one(size: Size, bucket: Bucket, cut: Cut) -> None:
    assert (fitted_mask(Image.new("L", size, 255), bucket, cut, SCALE) == 1).all()


def test_a_mask_of_another_size_is_laid_over_the_whole_picture() -> None:
    """A picture of 340 x 200, and its mask saved at 150 x 100: cut where the picture is cut."""
    mask = Image.new("L", (150, 100), 0)
    mask.paste(255, (75, 0, 150, 100))
    whole = mask.resize((340, 200), Image.Resampling.NEAREST)
    for cut in (Cut(), Cut(True, 0.0), Cut(False, 0.3), Cut(False, 1.0)):
        places = fitted_mask(mask, Bucket(64, 64), cut, SCALE, Size(340, 200))
        assert (places - fitted_mask(whole, Bucket(64, 64), cut, SCALE)).abs().max() <= 0.1


def test_a_mask_that_was_cut_away_says_so() -> None:
    mask = Image.new("L", (300, 100), 0)
    mask.paste(255, (0, 0, 50, 100))
    assert counts_nowhere(fit_mask(mask, Bucket(64, 64), CENTRE, SCALE))
    assert not counts_nowhere(fit_mask(mask, Bucket(64, 64), Cut(place=0.0), SCALE))


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_a_picture_decoded_at_a_reduced_scale_is_cut_at_the_same_place(denominator: int) -> None:
    """As a JPEG decoder reduces: sides are divided and rounded up. The geometry is that of the whole picture."""
    size, bucket = Size(1001, 1516), Bucket(56, 40)  # eight times smaller, it would be resized to 84 rows and not to 85
    whole = slopes(size)
    reduced = whole.resize((-(-size.width // denominator), -(-size.height // denominator)), Image.Resampling.BOX)
    for cut in (Cut(), Cut(True, 0.2), Cut(False, 1.0)):
        expected, placed = fitted(whole, bucket, cut)
        pixels, same = fitted(reduced, bucket, cut, size)
        assert same == placed == place(size, bucket, cut)
        assert (pixels - expected).abs().max() <= 3 / 127.5


def test_the_pixels_of_a_reduced_picture_are_exactly_those_of_its_share_of_the_box() -> None:
    reduced = noise(126, 190)
    pixels, placed = fitted(reduced, Bucket(56, 40), CENTRE, Size(1001, 1516))
    assert placed == Placement(Size(56, 85), top=22, left=0)
    box = (0, 22 * (190 / 85), 126, 62 * (190 / 85))
    assert torch.equal(pixels, pixels_of(reduced.resize((56, 40), Image.Resampling.LANCZOS, box=box)))


def test_black_and_white_are_the_ends_of_the_range() -> None:
    for shade, value in ((0, -1.0), (255, 1.0)):
        pixels, _ = fitted(Image.new("RGB", (10, 30), (shade,) * 3), Bucket(16, 16), CENTRE)
        assert torch.equal(pixels, torch.full((3, 16, 16), value))


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1), (3, 60_000)])
@pytest.mark.parametrize("cut", [Cut(), Cut(True, 0.0), Cut(False, 1.0)])
def test_a_very_long_picture_does_not_fill_the_memory(width: int, height: int, cut: Cut) -> None:
    bucket = Bucket(256, 1024)
    before = peak_bytes()
    pixels, placed = fitted(Image.new("RGB", (width, height)), bucket, cut)
    mask = fitted_mask(Image.new("L", (width, height), 255), bucket, cut, SCALE)
    assert pixels.shape == (3, 1024, 256)
    assert mask.shape == (1, 128, 32)
    assert max(placed.resized) >= 1024 * 60_000 / 3 / 4  # had it been resized as a whole: gigabytes
    assert peak_bytes() - before < 100 * 1024 * 1024
