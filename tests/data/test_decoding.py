"""Right pixels from every kind of file, or a refusal by name."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from trainer.core.errors import DataError
from trainer.data.decoding import ImageLimits, open_image, read_picture

LIMITS = ImageLimits()
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours near the four corners: top left, top right, bottom left, bottom right."""
    right, bottom = image.width - 3, image.height - 3
    pixels = np.asarray(image)
    return [tuple(int(v) for v in pixels[y, x]) for x, y in ((2, 2), (right, 2), (2, bottom), (right, bottom))]


def near(a: tuple[int, ...], b: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_turned_picture_comes_out_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = Image.new("RGB", (48, 24), WHITE)
    upright.paste(RED, (0, 0, 16, 12))  # top left
    upright.paste(BLUE, (32, 12, 48, 24))  # bottom right
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # what the camera stores so that turning it back gives the picture
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(save(stored, tmp_path / f"a.{suffix}", exif=exif), LIMITS)
    assert (image.mode, image.size) == ("RGB", (48, 24))
    found = corners(image)
    assert near(found[0], RED, 40)
    assert near(found[1], WHITE, 40)
    assert near(found[2], WHITE, 40)
    assert near(found[3], BLUE, 40)


def test_colours_hidden_under_transparency_become_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    image.paste((0, 0, 0, 128), (4, 4, 8, 8))
    found = open_image(save(image, tmp_path / "a.png"), LIMITS)
    assert found.getpixel((0, 0)) == BLUE
    assert found.getpixel((7, 0)) == WHITE
    assert found.getpixel((7, 7)) == (127, 127, 127)


def test_a_grey_with_alpha_becomes_white(tmp_path: Path) -> None:
    found = open_image(save(Image.new("LA", (4, 4), (0, 0)), tmp_path / "a.png"), LIMITS)
    assert found.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_palette_entry_becomes_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (4, 0, 8, 8))
    found = open_image(save(image, tmp_path / f"a.{suffix}", transparency=0), LIMITS)
    assert found.getpixel((0, 0)) == WHITE
    assert found.getpixel((7, 0)) == BLUE


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = np.asarray(open_image(save(Image.fromarray(ramp), tmp_path / f"a.{suffix}"), LIMITS))
    assert np.array_equal(found[..., 0].flatten(), np.arange(256))


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_a_floating_point_grey_is_scaled(tmp_path: Path, white: float) -> None:
    ramp = np.linspace(0, white, 256).astype(np.float32).reshape(16, 16)
    found = np.asarray(open_image(save(Image.fromarray(ramp), tmp_path / "a.tif"), LIMITS))
    assert np.array_equal(found[..., 1].flatten(), np.arange(256))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5.0, 1e9])
def test_floating_point_values_that_are_no_shades_are_refused(tmp_path: Path, value: float) -> None:
    values = np.full((4, 4), value, dtype=np.float32)
    with pytest.raises(DataError, match="values"):
        open_image(save(Image.fromarray(values), tmp_path / "a.tif"), LIMITS)


def test_a_16_bit_colour_png_keeps_its_colours(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">6H", 65535, 32896, 0, 0, 0, 65535)  # two pixels
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(content)
    found = open_image(path, LIMITS)
    assert [found.getpixel((0, 0)), found.getpixel((1, 0))] == [(255, 128, 0), BLUE]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path: Path, suffix: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = open_image(save(image, tmp_path / f"a.{suffix}"), LIMITS)
    assert near(tuple(np.asarray(found)[8, 8]), RED)


def test_a_colour_profile_is_applied(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    linear_like = Image.new("RGB", (8, 8), (128, 128, 128))
    plain = open_image(save(linear_like, tmp_path / "plain.png"), LIMITS)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    for name, other in (("xyz", profile), ("lab", lab)):
        path = save(linear_like, tmp_path / f"{name}.png", icc_profile=other.tobytes())
        picture = read_picture(path, LIMITS)
        assert "not used" in picture.remarks[0]  # of another colour space than the picture
        assert picture.image.getpixel((0, 0)) == plain.getpixel((0, 0))


def test_a_wide_profile_changes_the_numbers_and_srgb_does_not(tmp_path: Path, wide_profile: bytes) -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = open_image(save(image, tmp_path / "same.png", icc_profile=srgb), LIMITS)
    other = open_image(save(image, tmp_path / "other.png", icc_profile=wide_profile), LIMITS)
    assert same.getpixel((0, 0)) == (200, 100, 50)
    # Red and blue have changed places in this profile's primaries.
    assert near(tuple(np.asarray(other)[0, 0]), (50, 100, 200), 3)


@pytest.fixture
def wide_profile() -> bytes:
    """sRGB with the primaries of red and blue exchanged: the tags rXYZ and bXYZ take each other's place."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    places = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    profile[places[b"rXYZ"] : places[b"rXYZ"] + 4] = b"bXYZ"
    profile[places[b"bXYZ"] : places[b"bXYZ"] + 4] = b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def test_a_broken_profile_is_said_and_not_used(tmp_path: Path) -> None:
    picture = read_picture(
        save(Image.new("RGB", (4, 4), RED), tmp_path / "a.png", icc_profile=b"nonsense" * 40), LIMITS
    )
    assert picture.image.getpixel((0, 0)) == RED
    assert "profile" in picture.remarks[0]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_used_and_said(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    path = save(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    picture = read_picture(path, LIMITS)
    assert near(tuple(np.asarray(picture.image)[8, 8]), RED)
    assert picture.remarks == ("holds several frames; the first one is used",)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_file_that_is_cut_short_is_refused_every_time(tmp_path: Path, suffix: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = save(noise, tmp_path / f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    for _ in range(2):  # a second try must not find a half-decoded picture
        with pytest.raises(DataError) as caught:
            open_image(path, LIMITS)
        assert caught.value.where == str(path)


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (64, 64), RED), tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    end_of_data = content.index(b"IEND") - 4
    content[end_of_data - 1] ^= 1  # the last byte of IDAT's checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        open_image(path, LIMITS)


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text\n" * 20, b"<svg xmlns='x'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_picture_is_refused_whatever_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError):
        open_image(path, LIMITS)


def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), RED).save(buffer, "PNG")
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue())
    assert open_image(path, LIMITS).getpixel((0, 0)) == RED


def test_a_pipe_a_device_a_folder_and_a_link_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    save(Image.new("RGB", (4, 4)), tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to("real.png")
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", tmp_path / "link.png", Path("/dev/zero")):
        with pytest.raises(DataError, match="regular"):
            open_image(path, LIMITS)


def test_a_huge_header_is_refused_before_decoding(tmp_path: Path) -> None:
    path = save(Image.new("1", (4, 4)), tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    for sides in ((20_000, 20_000), (8_001, 8_000)):  # Pillow's own limit, and ours
        content[16:24] = struct.pack(">II", *sides)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
        with pytest.raises(DataError):
            open_image(path, LIMITS)


def test_a_file_over_the_size_limit_is_refused(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (64, 64)), tmp_path / "a.bmp")
    with pytest.raises(DataError, match="larger than"):
        open_image(path, ImageLimits(bytes=1000))


def test_any_single_damaged_byte_is_refused_or_harmless_but_never_a_crash(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    path = tmp_path / "a"
    for suffix in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, suffix)
        for _ in range(60):
            content = bytearray(buffer.getvalue())
            content[int(random.integers(0, min(len(content), 400)))] = int(random.integers(0, 256))
            path.write_bytes(content)
            try:
                assert open_image(path, LIMITS).mode == "RGB"
            except DataError:
                continue
