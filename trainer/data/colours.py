"""Any mode that a picture file can have -> sRGB of 8 bits on white."""

import io
from typing import Final

import numpy as np
from PIL import Image, ImageCms

BACKGROUND: Final = (255, 255, 255)  # what shows through transparent parts
_SPACES: Final = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode: the profile's colour space
_WHITES: Final = (255, 65_535, 2_147_483_647)


def as_srgb(image: Image.Image, profile: bytes | None, remarks: list[str]) -> Image.Image:
    """The same picture as 8-bit sRGB, transparent parts on `BACKGROUND`; decisions are added to `remarks`.

    16-bit and wider greys are scaled, not clipped. Floating-point greys are 0 .. 1; above that their own white is the
    least of (their maximum if it is at most 8, 255, 65,535) that holds them.

    Raises:
        ValueError: floating-point values that are no shades: NaN, infinite, negative or above 65,535.
    """
    if image.mode.startswith(("I", "F")):
        image = _grey_of_8_bits(image)
    if not image.has_transparency_data:
        return _through_profile(_plain(image), profile, remarks)
    colours, alpha = _split(image)
    on_white = Image.new("RGB", image.size, BACKGROUND)
    on_white.paste(_through_profile(colours, profile, remarks), mask=alpha)
    return on_white


def _grey_of_8_bits(image: Image.Image) -> Image.Image:
    """L, or LA where one grey was declared transparent."""
    values = np.asarray(image).astype(np.float64)
    white = 65_535.0 if image.mode.startswith("I;16") else _white_of(values, floating=image.mode == "F")
    grey = Image.fromarray(np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _white_of(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", *, floating: bool) -> float:
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


def _through_profile(image: Image.Image, profile: bytes | None, remarks: list[str]) -> Image.Image:
    """To sRGB by the profile in the file; a profile that is broken or of another colour space is not used."""
    if not profile:
        return image.convert("RGB")
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = profile[16:20].decode("ascii", "replace").strip()  # ICC.1:2022, table 17
        if space == "GRAY" and image.mode == "RGB":
            image = image.convert("L")
        if space != _SPACES[image.mode]:
            remarks.append(f"its colour profile is for {space}, not for {image.mode}; not used")
            return image.convert("RGB")
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(own).lower():
            return image  # through lcms and back would only round
        transform = ImageCms.buildTransform(
            own,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return transform.apply(image)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        remarks.append(f"its colour profile is damaged ({error}); taken as sRGB")
        return image.convert("RGB")
