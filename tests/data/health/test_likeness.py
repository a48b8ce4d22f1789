"""Copies are found however they were changed, and no two pictures are taken for one."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from trainer.data.health import likeness
from trainer.data.health.likeness import TINTS, WAVES, alike, face_of, tint_of

Scene = Callable[..., Image.Image]
Pairs = list[tuple[int, int]]


def pairs_of(images: list[Image.Image], **options: int) -> tuple[Pairs, Pairs]:
    faces = np.stack([face_of(image.convert("L")) for image in images])
    found = alike(faces, np.stack([tint_of(image) for image in images]), **options)
    return as_pairs(found.near), as_pairs(found.mirrored)


def as_pairs(found: likeness.Pairs) -> Pairs:
    return [(int(one), int(other)) for one, other in found]


def saved_badly(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cut(image: Image.Image, share: float) -> Image.Image:
    across, down = image.width * share, image.height * share
    return image.crop((round(across), round(down), round(image.width - across), round(image.height - down)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda image: image.copy(),
    "saved badly": saved_badly,
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "slightly cut": lambda image: cut(image, 0.01),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("few", [100, 0], ids=["every pair", "hashed"])
def test_a_changed_copy_is_found_and_nothing_else(scene: Scene, change: Callable[..., Image.Image], few: int) -> None:
    images = [scene(seed) for seed in range(40)]
    images += [change(images[seed]) for seed in (3, 7, 11)]
    images.append(ImageOps.mirror(change(images[20])))
    near, mirrored = pairs_of(images, few=few)
    assert near == [(3, 40), (7, 41), (11, 42)]
    assert mirrored == [(20, 43)]


def test_a_symmetrical_copy_is_no_mirrored_one(scene: Scene) -> None:
    half = scene(1)
    whole = Image.new("RGB", (half.width * 2, half.height))
    whole.paste(half, (0, 0))
    whole.paste(ImageOps.mirror(half), (half.width, 0))
    assert pairs_of([whole, saved_badly(whole), scene(2)]) == ([(0, 1)], [])


def test_another_colour_is_another_picture(scene: Scene) -> None:
    red, green, blue = scene(1).split()
    assert pairs_of([scene(1), Image.merge("RGB", (blue, green, red))]) == ([], [])


def test_pictures_of_one_shade_are_like_nothing() -> None:
    assert pairs_of([Image.new("RGB", (64, 64), shade) for shade in ("white", "white", "black")]) == ([], [])


def test_pictures_of_one_template_must_be_more_alike_than_it_makes_them(scene: Scene) -> None:
    """Faces on one ground are like each other; only those that are more like than the rest are copies."""
    ground = scene(99)

    def face(seed: int) -> Image.Image:
        image = ground.copy()
        image.paste(scene(seed, (64, 56)), (64, 36))
        return image

    images = [face(seed) for seed in range(30)]
    assert pairs_of([*images, saved_badly(images[4])]) == ([(4, 30)], [])


def test_no_picture_and_one_picture_have_no_copy(scene: Scene) -> None:
    assert pairs_of([scene(1)]) == ([], [])
    empty = alike(np.zeros((0, WAVES), np.int8), np.zeros((0, TINTS), np.uint8))
    assert (as_pairs(empty.near), as_pairs(empty.mirrored)) == ([], [])


def faces(count: int, generator: np.random.Generator) -> np.ndarray:
    loud = generator.standard_normal((count, WAVES))
    return np.rint(loud / np.abs(loud).max(1, keepdims=True) * 127).astype(np.int8)


@pytest.mark.parametrize(("like", "found_at_least"), [(0.97, 0.99), (0.9, 0.95), (0.85, 0.8)])
def test_hashing_finds_nearly_all_that_a_look_at_every_pair_finds(like: float, found_at_least: float) -> None:
    generator = np.random.default_rng(5)
    count, copies = 3000, 300
    originals = faces(count, generator)
    noise = faces(copies, generator).astype(np.float64)
    copied = like * originals[:copies] + (1 - like**2) ** 0.5 * noise
    copied[: copies // 2] *= likeness.TURNED
    copied = np.rint(copied / np.abs(copied).max(1, keepdims=True) * 127).astype(np.int8)
    every = np.concatenate((originals, copied))
    tints = np.full((len(every), TINTS), 128, np.uint8)
    truth, hashed = alike(every, tints, few=count * 2), alike(every, tints, few=0)
    for known, found in ((truth.near, hashed.near), (truth.mirrored, hashed.mirrored)):
        wanted, got = set(as_pairs(known)), set(as_pairs(found))
        assert len(wanted) > copies // 4  # or there is nothing to miss
        assert got <= wanted
        assert len(got) >= found_at_least * len(wanted)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9))
def test_bits_are_counted(numbers: list[int]) -> None:
    counted = likeness.bits_set(np.array(numbers, np.uint64))
    assert counted.tolist() == [bin(number).count("1") for number in numbers]
