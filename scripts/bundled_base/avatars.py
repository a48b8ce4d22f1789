"""DiceBear's notes about a character in words."""

import colorsys
import re
from typing import Any

Notes = dict[str, Any]  # JSON written by dicebear.mjs: attribute -> picked variant or colour

_SKINS = {
    "light": ("ffdbac", "f5cfa0", "eac393", "ffdbb4"),
    "tan": ("e0b687", "cb9e6e", "edb98a", "d08b5b"),
    "brown": ("b68655", "a26d3d", "ae5d29"),
    "dark": ("8d5524", "694d3d"),
}
_SKIN_OF = {colour: name for name, colours in _SKINS.items() for colour in colours}

# upper end of the hue in degrees -> name
_HUES = ((68, "yellow"), (170, "green"), (255, "blue"), (290, "purple"), (345, "pink"))


def _warm_name(hue: float, saturation: float, value: float) -> str:
    if hue < 16 or hue >= 345:
        if saturation < 0.6 and value > 0.75:
            return "pink"
        return "brown" if value < 0.5 else "red"
    if value < 0.62:
        return "brown"
    return "blond" if saturation < 0.5 else "orange"


def colour_name(code: str) -> str:
    """Return the everyday word for a hexadecimal colour; a pale orange is called blond."""
    digits = code.lstrip("#")
    red, green, blue = (int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4))
    turn, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    hue = turn * 360
    if value < 0.2:
        return "black"
    if saturation < 0.13:
        return "white" if value > 0.88 else "gray"
    if hue < 45 or hue >= 345:
        return _warm_name(hue, saturation, value)
    return next(name for end, name in _HUES if hue < end)


def _words(camel: str) -> str:
    return re.sub(r"\d+", "", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", camel)).lower().strip()


def _skin(notes: Notes) -> str:
    return f"{_SKIN_OF.get(notes['skinColor'].lstrip('#').lower(), 'tan')} skin"


def _hair_colour(code: str) -> str:
    return colour_name(code).replace("orange", "blond")


def _pixel_art(notes: Notes) -> list[str]:
    length = "long" if notes["hair"].startswith("long") else "short"
    glasses = notes.get("glasses") or ""
    parts = [
        f"{colour_name(notes['hatColor'])} hat" if notes.get("hat") else "",
        f"{length} {_hair_colour(notes['hairColor'])} hair",
        ("sunglasses" if glasses.startswith("dark") else "glasses") if glasses else "",
        "beard" if notes.get("beard") else "",
        "happy" if notes["mouth"].startswith("happy") else "sad",
        f"{colour_name(notes['clothingColor'])} shirt",
        _skin(notes),
    ]
    return [part for part in parts if part]


def _open_peeps(notes: Notes) -> list[str]:
    head = _words(notes["head"]).replace("no hair", "bald")
    head = head.replace("hat beanie", "beanie hat").replace("hat hip", "hat")
    has_no_hair = "hat" in head or head in ("bald", "hijab", "turban", "bear")
    facial_hair = notes.get("facialHair") or ""
    parts = [
        head if has_no_hair else f"{head} hair",
        _words(notes["face"]),
        _words(notes["accessories"]) if notes.get("accessories") else "",
        ("moustache" if "moustache" in facial_hair else "beard") if facial_hair else "",
        "mask" if notes.get("mask") else "",
        f"{colour_name(notes['clothingColor']).replace('blond', 'orange')} shirt",
        _skin(notes),
    ]
    return [part for part in parts if part]


def describe(notes: Notes) -> tuple[str, tuple[str, ...]]:
    """Return the style's name and the attributes of one character."""
    if notes["style"] == "pixelArt":
        return "pixel art", tuple(_pixel_art(notes))
    return "peeps style", tuple(_open_peeps(notes))
