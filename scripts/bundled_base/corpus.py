"""Renders the captioned corpus: seven styles of emoji and characters on white."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from bundled_base.avatars import describe
from bundled_base.captions import Entry
from bundled_base.emoji_names import EmojiNames
from bundled_base.latents import Pictures

Captioned = tuple[Entry, Image.Image]

# The last two are never trained on: they are the strangers among the neighbours of the score.
ICON_SETS = {
    "noto": "noto style",
    "fluent-emoji-flat": "flat style",
    "fluent-emoji": "gradient style",
    "fxemoji": "classic style",
}
_RENDER_SIZE = 256
_MARGIN = 0.04  # white border, share of the side
_FRAME = (("left", 0), ("top", 0), ("width", 16), ("height", 16))  # Iconify's names and defaults


def on_white(picture: Image.Image) -> Image.Image:
    """Return the picture over a white ground."""
    layered = picture.convert("RGBA")
    ground = Image.new("RGBA", layered.size, "white")
    ground.alpha_composite(layered)
    return ground.convert("RGB")


def rasterise(svg: str) -> Image.Image:
    """Return a drawing in pixels over white."""
    return on_white(Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))))


def fit(picture: Image.Image, size: int) -> Pictures:
    """Return the picture centred in a white square with a small margin, [size size 3]."""
    inner = round(size * (1 - 2 * _MARGIN))
    fitted = picture.copy()
    if max(fitted.size) > inner:
        fitted.thumbnail((inner, inner), Image.Resampling.LANCZOS)
    elif max(fitted.size) < inner:
        fitted = fitted.resize((inner, inner), Image.Resampling.LANCZOS)
    ground = Image.new("RGB", (size, size), "white")
    ground.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return np.asarray(ground)


def icon_pictures(npm_folder: Path, icon_set: str, names: EmojiNames) -> Iterator[Captioned]:
    """Yield the known emoji of an Iconify set, each label once, without skin-tone variants."""
    path = npm_folder / "node_modules" / "@iconify-json" / icon_set / "icons.json"
    collection = json.loads(path.read_text(encoding="utf-8"))
    seen: set[str] = set()
    for key, icon in collection["icons"].items():
        name = names.by_name(key)
        if name is None or name.label in seen or ("skin" in key and key.endswith("tone")):
            continue
        seen.add(name.label)
        # resvg refuses sizes in percent, so the drawing gets its own frame
        frame = [icon.get(side, collection.get(side, default)) for side, default in _FRAME]
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{frame[0]} {frame[1]} {frame[2]} {frame[3]}" width="{_RENDER_SIZE}" '
            f'height="{_RENDER_SIZE}">{icon["body"]}</svg>'
        )
        yield Entry(name.label, name.tags, ICON_SETS[icon_set], "emoji"), rasterise(svg)


def rendered_pictures(npm_folder: Path, names: EmojiNames) -> Iterator[Captioned]:
    """Yield the known emoji of Microsoft's 3D renders."""
    folder = npm_folder / "node_modules" / "@lobehub" / "fluent-emoji-3d" / "assets"
    for path in sorted(folder.iterdir()):
        name = names.by_code(path.name.rpartition(".")[0])
        if name is not None:
            yield Entry(name.label, name.tags, "3d style", "emoji"), on_white(Image.open(path))


def avatar_pictures(avatars: Path) -> Iterator[Captioned]:
    """Yield the DiceBear characters."""
    for notes in json.loads((avatars / "notes.json").read_text(encoding="utf-8")):
        style, attributes = describe(notes)
        svg = (avatars / notes["file"]).read_text(encoding="utf-8")
        yield Entry("person", attributes, style, "avatar"), rasterise(svg)


def render_corpus(npm_folder: Path, avatars: Path, size: int) -> tuple[list[Entry], Pictures]:
    """Return captions' raw material and pictures of every source, in a fixed order, [N size size 3]."""
    names = EmojiNames(npm_folder)
    entries: list[Entry] = []
    pictures: list[Pictures] = []

    def add(captioned: Iterator[Captioned], source: str) -> None:
        before = len(entries)
        for entry, picture in captioned:
            entries.append(entry)
            pictures.append(fit(picture, size))
        print(f"{source}: {len(entries) - before} pictures", flush=True)

    for icon_set in ICON_SETS:
        add(icon_pictures(npm_folder, icon_set, names), icon_set)
    add(rendered_pictures(npm_folder, names), "fluent-emoji-3d")
    add(avatar_pictures(avatars), "dicebear")
    return entries, np.stack(pictures)
