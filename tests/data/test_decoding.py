"""Right pixels from every kind of file, or a refusal by name; the hostile set has many more of both."""

import io
import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trainer.core.errors import DataError
from trainer.data.decoding import (
    ImageLimits,
    decode,
    decode_mask,
    digest,
    look,
    looks_like_picture,
    open_image,
    read_regular,
)
from trainer.data.example import Size

LIMITS = ImageLimits()
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:  # options of Pillow's writers
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something with the spectrum of a photograph, and with edges: noise of all scales under a few smooth shapes."""
    random = np.random.default_rng(seed)
    values = np.full((height, width, 3), 128.0)
    for step, strength in ((128, 30), (64, 24), (32, 18), (16, 12), (8, 8), (4, 5), (2, 3), (1, 2)):
        grid = random.normal(0, strength, (height // step, width // step, 3)).clip(-128, 127) + 128
        large = Image.fromarray(grid.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        layer = np.asarray(large).astype(float) - 128
        values += 0.75 * layer.mean(axis=2, keepdims=True) + 0.25 * layer
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, side = (int(random.integers(0, most)) for most in (width, height, height // 4))
        draw.ellipse((x, y, x + side, y + side // 2), fill=tuple(int(value) for value in random.integers(60, 200, 3)))
    return image


@pytest.fixture(scope="module")
def large() -> Image.Image:
    return photograph(2048, 1024)


def test_the_digest_is_blake3() -> None:
    # The empty input's digest in the specification of BLAKE3.
    assert digest(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert digest(b"a") != digest(b"b")


@pytest.mark.parametrize("kind", FORMATS)
def test_looking_tells_size_and_remarks_of_what_decoding_gives(kind: str) -> None:
    content = saved(noise(40, 24), kind)
    picture, sight = decode(content, "here", LIMITS), look(content, "here", LIMITS)
    assert (picture.image.mode, picture.image.size, picture.alpha) == ("RGB", (40, 24), None)
    assert sight.size == Size(40, 24)
    assert sight.remarks == picture.remarks == ()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_size_is_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(noise(40, 24), kind, exif=exif)
    assert look(content, "here", LIMITS).size == Size(24, 40)
    assert decode(content, "here", LIMITS).image.size == (24, 40)


@pytest.mark.parametrize("options", [{"quality": 95, "subsampling": 0}, {"quality": 85}], ids=["fine", "subsampled"])
@pytest.mark.parametrize("part", [2, 4, 8])
def test_nobody_sees_that_a_jpeg_was_decoded_smaller(large: Image.Image, options: dict[str, Any], part: int) -> None:
    content = saved(large, "JPEG", **options)
    least = Size(large.width // (4 * part), large.height // (4 * part))
    whole, reduced = decode(content, "here", LIMITS).image, decode(content, "here", LIMITS, least=least).image
    assert reduced.size == (large.width // part, large.height // part)
    shown = [np.asarray(image.resize(least, Image.Resampling.LANCZOS)).astype(int) for image in (whole, reduced)]
    difference = np.abs(shown[0] - shown[1])
    assert difference.mean() < 0.4
    assert (difference.max(axis=2) > 2).mean() <= 0.001
    assert difference.max() <= 4


def test_a_jpeg_is_decoded_in_full_unless_four_times_as_much_is_there(large: Image.Image) -> None:
    content = saved(large, "JPEG")

    def width(*least: int) -> int:
        return decode(content, "here", LIMITS, least=Size(*least)).image.width

    assert width(256, 128) == 1024  # four times
    assert width(257, 128) == width(256, 129) == 2048
    assert width(1, 1) == 256  # never less than an eighth
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = decode(saved(large, "JPEG", exif=turned), "here", LIMITS, least=Size(128, 256)).image
    assert upright.size == (512, 1024)
    odd = saved(
        large.crop((0, 0, 2046, 1024)), "JPEG"
    )  # an eighth and a quarter of it would not cover the same picture
    assert decode(odd, "here", LIMITS, least=Size(8, 8)).image.width == 1023
    assert decode(saved(large, "PNG"), "here", LIMITS, least=Size(8, 8)).image.size == large.size


def test_the_transparency_comes_beside_the_picture_and_turns_with_it() -> None:
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = decode(saved(image, "PNG", exif=exif), "here", LIMITS)
    assert picture.alpha is not None
    assert (picture.alpha.mode, picture.alpha.size) == ("L", (8, 4))
    assert [picture.image.getpixel(place) for place in ((0, 0), (7, 0))] == [WHITE, BLUE]
    assert [picture.alpha.getpixel(place) for place in ((0, 0), (7, 0))] == [0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_opaque_has_no_transparency(mode: str) -> None:
    assert decode(saved(noise().convert(mode), "PNG"), "here", LIMITS).alpha is None


def test_a_mask_is_grey_and_what_is_transparent_in_it_is_not_learned_from() -> None:
    colours = Image.new("RGB", (8, 4), "white")
    colours.paste((128, 128, 128), (4, 0, 8, 4))
    assert np.asarray(decode_mask(saved(colours, "PNG"), "here", LIMITS)).tolist() == [[255] * 4 + [128] * 4] * 4
    hidden = Image.new("LA", (8, 4), (255, 255))
    hidden.paste((255, 0), (0, 0, 4, 4))
    assert np.asarray(decode_mask(saved(hidden, "PNG"), "here", LIMITS)).tolist() == [[0] * 4 + [255] * 4] * 4
    deep = Image.fromarray(np.full((2, 2), 32_896, np.uint16))
    assert decode_mask(saved(deep, "PNG"), "here", LIMITS).getpixel((0, 0)) == 128
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_mask(saved(colours, "PNG", exif=exif), "here", LIMITS).size == (4, 8)
    with pytest.raises(DataError, match="no picture"):
        decode_mask(b"text", "here", LIMITS)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("verb", [look, decode, decode_mask])
def test_a_file_that_is_cut_short_is_refused_every_time(kind: str, verb: Any) -> None:
    content = saved(noise(), kind)
    for _ in range(2):  # a second try must not find a half-decoded picture
        with pytest.raises(DataError, match=f"{kind} picture is damaged or cut short") as caught:
            verb(content[: len(content) * 9 // 10], "here", LIMITS)
        assert caught.value.where == "here"


@pytest.mark.parametrize("values", [(65_535, 32_896, 0), (0, 1, 65_534)])
def test_16_bit_grey_is_rounded_and_not_clipped(values: tuple[int, ...]) -> None:
    content = saved(Image.fromarray(np.array([values], np.uint16)), "PNG")
    found = np.asarray(decode(content, "here", LIMITS).image)[0, :, 0]
    assert found.tolist() == [round(value / 257) for value in values]


def test_overbright_values_of_a_renderer_become_white() -> None:
    values = np.array([[0.0, 1.25, 2.5]], np.float32)
    found = np.asarray(decode(saved(Image.fromarray(values), "TIFF"), "here", LIMITS).image)[0, :, 1]
    assert found.tolist() == [0, 128, 255]


def test_limits_are_said_with_the_way_to_raise_them() -> None:
    with pytest.raises(DataError, match="64 x 64 pixels, more than 4,095") as caught:
        look(saved(noise(), "PNG"), "here", ImageLimits(pixels=4_095))
    assert "data.limits.pixels" in str(caught.value)
    assert look(saved(noise(), "PNG"), "here", ImageLimits(pixels=4_096)).size == Size(64, 64)


def test_a_file_over_the_size_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bytes(1_001))
    with pytest.raises(DataError, match="larger than 1,000 bytes"):
        read_regular(path, 1_000)
    assert len(read_regular(path, 1_001)) == 1_001


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "real.png").write_bytes(saved(noise(), "PNG"))
    (tmp_path / "link.png").symlink_to("real.png")
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", tmp_path / "link.png", Path("/dev/zero")):
        with pytest.raises(DataError, match="regular"):
            open_image(path, LIMITS)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        open_image(tmp_path / "gone\n.png", LIMITS)
    assert open_image(tmp_path / "real.png", LIMITS).size == (64, 64)


def test_a_picture_is_known_by_its_first_bytes() -> None:
    for kind in FORMATS:
        assert looks_like_picture(saved(noise(), kind)[:16]) == (kind != "BMP")  # two letters say too little
    assert not looks_like_picture(b"BM, he said, is short for")
    assert not looks_like_picture(b"")


def test_threads_do_not_disturb_each_other_nor_print_warnings() -> None:
    good = [saved(noise(), kind) for kind in FORMATS]
    odd = bytearray(saved(noise(), "TIFF"))
    odd[-12:-8] = struct.pack("<I", 0x7FFFFFFF)  # a tag whose data stand behind the end: Pillow warns of it
    bad = [saved(noise(), "PNG")[:-40], saved(noise(), "JPEG")[:-900], bytes(odd[:-20])]
    expected = [np.asarray(decode(content, "here", LIMITS).image) for content in good]

    def work(number: int) -> bool:
        if number % 3 == 0:
            with pytest.raises(DataError):
                decode(bad[number // 3 % len(bad)], "here", LIMITS)
            return True
        content = good[number % len(good)]
        return np.array_equal(np.asarray(decode(content, "here", LIMITS).image), expected[number % len(good)])

    with warnings.catch_warnings(record=True) as seen:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as decoding.py does; pytest undoes it for each test
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(300)))
    assert not seen
