"""The blur of a picture, measured in pixels, whatever is on it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from trainer.data.health.sharpness import blur_of

Scene = Callable[..., Image.Image]
SEEDS = range(5)


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def grainy(image: Image.Image, deviation: float) -> Image.Image:
    grain = np.random.default_rng(0).normal(0, deviation, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def plain(image: Image.Image) -> Image.Image:
    return image


def with_grain(image: Image.Image) -> Image.Image:
    return grainy(image, 8)


def flat(image: Image.Image) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(0.4)


def dark(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.5)


@pytest.mark.parametrize("size", [(192, 128), (640, 480)], ids=["whole", "in tiles"])
@pytest.mark.parametrize("radius", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("spoil", [plain, with_grain, flat, dark])
def test_the_radius_is_found_whatever_the_contrast_and_the_grain(
    scene: Scene, size: tuple[int, int], radius: float, spoil: Callable[[Image.Image], Image.Image]
) -> None:
    measured = [blur_of(spoil(blurred(scene(seed, size), radius)).convert("L")) for seed in SEEDS]
    assert float(np.median(measured)) == pytest.approx(radius, rel=0.25)


@pytest.mark.parametrize("size", [(192, 128), (640, 480)])
def test_crisp_pictures_are_far_from_soft_ones(scene: Scene, size: tuple[int, int]) -> None:
    for seed in SEEDS:
        assert blur_of(scene(seed, size).convert("L")) < 1.2
        assert blur_of(grainy(scene(seed, size), 8).convert("L")) < 1.2
        assert blur_of(blurred(scene(seed, size), 3).convert("L")) > 2


def test_grain_makes_no_blurred_picture_look_sharp_as_it_does_to_the_laplacian(scene: Scene) -> None:
    """Why it is not the variance of the Laplacian: that takes grain for detail."""

    def laplacian(image: Image.Image) -> float:
        grey = np.asarray(image.convert("L")).astype(np.float64)
        around = grey[1:-1, 2:] + grey[1:-1, :-2] + grey[2:, 1:-1] + grey[:-2, 1:-1]
        return float((around - 4 * grey[1:-1, 1:-1]).var())

    soft, crisp = grainy(blurred(scene(1), 3), 12), ImageEnhance.Contrast(scene(1)).enhance(0.2)
    assert laplacian(soft) > laplacian(crisp)
    assert blur_of(soft.convert("L")) > 2 > 1.2 > blur_of(crisp.convert("L"))


def test_a_soft_background_does_no_harm(scene: Scene) -> None:
    image = scene(3, (640, 480))
    soft = blurred(image, 6)
    soft.paste(image.crop((240, 160, 400, 320)), (240, 160))
    assert blur_of(soft.convert("L")) < 1.2


def test_where_there_is_no_edge_there_is_no_measure() -> None:
    assert math.isnan(blur_of(Image.new("L", (64, 64), 90)))
    assert math.isnan(blur_of(Image.new("L", (900, 700), 90)))
    assert math.isnan(blur_of(Image.new("L", (4, 900), 90)))


@pytest.mark.parametrize("size", [(8, 8), (9, 4000), (3000, 20), (257, 300), (1, 1)])
def test_any_size_can_be_measured(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    measured = blur_of(Image.fromarray(noise))
    assert math.isnan(measured) or 0 <= measured <= 10
