"""Any mode that a picture file can have -> sRGB of 8 bits on white."""

import io
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageCms

from trainer.data.containers import Container

BACKGROUND: Final = (255, 255, 255)  # what shows through transparent parts
_SPACES: Final = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode: the profile's colour space
_WHITES: Final = (255, 65_535, 2_147_483_647)
_ROWS: Final = 1 << 20  # values that are turned into shades at once

Values = npt.NDArray[np.generic]


def as_srgb(container: Container) -> tuple[Image.Image, Image.Image | None]:
    """A loaded picture as 8-bit sRGB, transparent parts on `BACKGROUND`, and its transparency if it has any.

    16-bit and wider greys are scaled, not clipped. Floating-point greys are 0 .. 1; above that their own white is the
    least of (their maximum if it is at most 8, 255, 65,535) that holds them. Decisions are added to the remarks.

    Raises:
        ValueError: floating-point values that are no shades: NaN, infinite, negative or above 65,535.
    """
    image = _of_8_bits(container)
    if not image.has_transparency_data:
        return _converted(_plain(image), container), None
    colours, alpha = _split(image)
    rgb = _converted(colours, container)
    if alpha.getextrema() == (255, 255):
        return rgb, None
    on_white = Image.new("RGB", image.size, BACKGROUND)
    on_white.paste(rgb, mask=alpha)
    return on_white, alpha


def as_mask(container: Container) -> Image.Image:
    """A loaded picture as 8-bit grey; what is transparent is black. Numbers, not colours: no profile is applied.

    Raises:
        ValueError: as `as_srgb`.
    """
    image = _of_8_bits(container)
    if not image.has_transparency_data:
        return _plain(image).convert("L")
    colours, alpha = _split(image)
    return ImageChops.multiply(colours.convert("L"), alpha)


def check_colours(container: Container) -> None:
    """Do, of a loaded picture, what can fail or be remarked on in `as_srgb`.

    Raises:
        ValueError: as `as_srgb`.
    """
    image = container.image
    if image.mode in ("I", "F"):
        _white_of(np.asarray(image), floating=image.mode == "F")
    mode = {"1": "L", "LA": "L", "La": "L"}.get(image.mode, image.mode)
    _transform(container, mode if mode in _SPACES else "L" if mode.startswith(("I", "F")) else "RGB")


def _of_8_bits(container: Container) -> Image.Image:
    """L instead of wider greys, or LA where one grey was declared transparent."""
    image = container.image
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    white = container.white or 65_535
    if image.mode in ("I", "F"):
        white = _white_of(values, floating=image.mode == "F")
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _ROWS // values.shape[1])  # in pieces, since each needs eight times the room on its way
    for top in range(0, len(values), rows):
        shades = np.rint(values[top : top + rows].astype(np.float64) * (255.0 / white))
        grey[top : top + rows] = np.clip(shades, 0, 255)
    result = Image.fromarray(255 - grey if container.inverted else grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        return Image.merge("LA", (result, alpha))
    return result


def _white_of(values: Values, *, floating: bool) -> float:
    top, bottom = float(values.max()), float(values.min())
    if not (np.isfinite(top) and np.isfinite(bottom)) or bottom < 0:
        raise ValueError("its values are negative or not finite")
    if floating and top <= 8:  # 1, or overbright by a little, as renderers write it
        return max(top, 1.0)
    for white in _WHITES[:2] if floating else _WHITES:
        if top <= white:
            return float(white)
    raise ValueError("its values are too large for shades")


def _plain(image: Image.Image) -> Image.Image:
    """An opaque picture in RGB, L or CMYK."""
    if image.mode in _SPACES:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return transform.apply(image)
    return image.convert("RGB")


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Colours as they are under the transparency, and the transparency."""
    if image.mode in ("LA", "La"):
        both = image.convert("LA")
        return both.getchannel(0), both.getchannel(1)
    full = image.convert("RGBA")
    return full.convert("RGB"), full.getchannel(3)


def _converted(image: Image.Image, container: Container) -> Image.Image:
    """To sRGB by the profile in the file, if there is one that can be used."""
    transform = _transform(container, image.mode)
    if transform is None:
        return image.convert("RGB")
    return transform.apply(image if image.mode == transform.input_mode else image.convert(transform.input_mode))


def _transform(container: Container, mode: str) -> ImageCms.ImageCmsTransform | None:
    if not container.profile or container.image.mode == "LAB":
        return None
    transform, remark = _transform_by(container.profile, mode)
    if remark:
        container.remarks.append(remark)
    return transform


@lru_cache(maxsize=16)
def _transform_by(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """How to get from a profile's colours to sRGB; or nothing, and what to say about it. One camera has one profile.

    A grey profile is also used for a picture of three channels, which are then made one.
    """
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = profile[16:20].decode("ascii", "replace").strip()  # ICC.1:2022, table 17
        if space == "GRAY" and mode == "RGB":
            mode = "L"
        if space != _SPACES[mode]:
            return None, f"its colour profile is for {space}, not for {mode}; not used"
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(own).lower():
            return None, ""  # through lcms and back would only round
        transform = ImageCms.buildTransform(
            own,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return None, f"its colour profile is damaged ({error}); taken as sRGB"
    return transform, ""
