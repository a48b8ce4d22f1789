"""Every mode and depth that a picture file can have, with the colours that have to come out."""

import struct
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from hostile_case import (
    BLACK,
    BLUE,
    GREEN,
    GREYS,
    HEIGHT,
    QUARTERS,
    RED,
    WHITE,
    WIDTH,
    Case,
    Colour,
    Tiff,
    chunk,
    greys,
    png,
    probes,
    quarters,
    run_length_bmp,
    saved,
)
from PIL import Image

Values = npt.NDArray[Any]
_FRAMES = ("holds several frames",)
_MIDDLE: Colour = (127, 127, 127)  # half of black on white
_ON_WHITE = (WHITE, GREEN, WHITE, _MIDDLE)
_WIDE = tuple(value * 257 for value in GREYS)  # the same shades in 16 bits


def modes() -> list[Case]:
    """PNG, JPEG, TIFF, BMP, GIF, WEBP and AVIF in all their kinds."""
    return [*_png_modes(), *_png_transparency(), *_jpeg_modes(), *_tiff_greys(), *_tiff_modes(), *_other_modes()]


def rows(values: Values) -> bytes:
    """A PNG's rows, none of them filtered."""
    return b"".join(b"\0" + row.tobytes() for row in values)


def _quarter_array(values: tuple[int, ...], kind: str) -> Values:
    across = np.repeat(np.array(values, dtype=kind).reshape(2, 2), WIDTH // 2, axis=1)
    return np.repeat(across, HEIGHT // 2, axis=0)


def _packed(values: tuple[int, ...], depth: int) -> bytes:
    """Rows of pixels of less than 8 bits."""
    bits = np.unpackbits(_quarter_array(values, "u1")[..., None], axis=-1)[..., 8 - depth :]
    return rows(np.packbits(bits.reshape(HEIGHT, -1), axis=1))


def _png_modes() -> Iterator[Case]:
    grey, size = quarters("L", GREYS), (WIDTH, HEIGHT)
    two = quarters("1", (0, 1, 1, 0))
    yield Case(name="modes/1.png", content=saved(two, "PNG"), probes=greys((0, 255, 255, 0)))
    yield Case(name="modes/L.png", content=saved(grey, "PNG"), probes=greys())
    yield Case(name="modes/LA.png", content=saved(quarters("LA", ((0, 255), (255, 255), (7, 0), (0, 128))), "PNG"),
               probes=greys((0, 255, 255, 127)))  # fmt: skip
    yield Case(name="modes/P.png", content=saved(quarters().quantize(4), "PNG"), probes=probes())
    yield Case(name="modes/RGB.png", content=saved(quarters(), "PNG"), probes=probes())
    for depth, levels in ((2, (0, 1, 2, 3)), (4, (0, 5, 10, 15))):
        yield Case(
            name=f"modes/grey-{depth}-bit.png", content=png(size, depth, 0, _packed(levels, depth)), probes=greys()
        )
    wide = rows(_quarter_array(_WIDE, ">u2"))
    yield Case(name="modes/grey-16-bit.png", content=png(size, 16, 0, wide), probes=greys())
    colours = np.array(QUARTERS, ">u2").reshape(2, 2, 3) * 257
    deep = np.repeat(np.repeat(colours, HEIGHT // 2, axis=0), WIDTH // 2, axis=1).astype(">u2")
    yield Case(name="modes/RGB-16-bit.png", content=png(size, 16, 2, rows(deep)), probes=probes())
    opaque = np.concatenate([deep, np.full((HEIGHT, WIDTH, 1), 65535, ">u2")], axis=2).astype(">u2")
    opaque[: HEIGHT // 2, : WIDTH // 2, 3] = 0
    yield Case(name="modes/RGBA-16-bit.png", content=png(size, 16, 6, rows(opaque)),
               probes=probes((WHITE, *QUARTERS[1:])))  # fmt: skip
    both = np.stack([_quarter_array(_WIDE, ">u2"), _quarter_array((0, 65535, 65535, 65535), ">u2")], axis=2)
    yield Case(name="modes/LA-16-bit.png", content=png(size, 16, 4, rows(both)), probes=greys((255, *GREYS[1:])))
    palette = chunk(b"PLTE", bytes(value for colour in QUARTERS for value in colour))
    for depth in (2, 4, 8):
        packed = _packed((0, 1, 2, 3), depth)
        yield Case(
            name=f"modes/P-{depth}-bit.png", content=png(size, depth, 3, packed, before=palette), probes=probes()
        )
    yield Case(name="modes/interlaced.png", content=_interlaced(np.asarray(quarters())), probes=probes())
    short = chunk(b"PLTE", bytes(RED + GREEN))
    yield Case(name="modes/P-without-palette.png", content=png(size, 8, 3, _packed((0, 1, 2, 3), 8)),
               fate="rejected", says="palette")  # fmt: skip
    yield Case(name="modes/P-short-palette.png", content=png(size, 8, 3, _packed((0, 1, 0, 1), 8), before=short),
               probes=probes((RED, GREEN, RED, GREEN)))  # fmt: skip


def _interlaced(pixels: Values) -> bytes:
    """PNG, second edition, section 8: seven passes."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [rows(np.ascontiguousarray(pixels[top::down, left::across])) for top, left, down, across in passes]
    return png((pixels.shape[1], pixels.shape[0]), 8, 2, b"".join(parts), interlaced=1)


def _png_transparency() -> Iterator[Case]:
    size = (WIDTH, HEIGHT)
    hidden = quarters("RGBA", ((*RED, 0), (*GREEN, 255), (*BLUE, 0), (0, 0, 0, 128)))
    yield Case(name="alpha/hidden.png", content=saved(hidden, "PNG"), probes=probes(_ON_WHITE))
    yield Case(name="alpha/all-opaque.png", content=saved(quarters().convert("RGBA"), "PNG"), probes=probes())
    nothing = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    yield Case(name="alpha/nothing.png", content=saved(nothing, "PNG"), probes=probes([WHITE] * 4))
    palette = chunk(b"PLTE", bytes(value for colour in QUARTERS for value in colour))
    packed = _packed((0, 1, 2, 3), 8)
    one, table = chunk(b"tRNS", b"\xff\0"), chunk(b"tRNS", b"\0\x80")
    yield Case(name="alpha/palette-one.png", content=png(size, 8, 3, packed, before=palette + one),
               probes=probes((RED, WHITE, BLUE, WHITE)))  # fmt: skip
    half: Colour = (142, 227, 147)  # half of green on white
    yield Case(name="alpha/palette-table.png", content=png(size, 8, 3, packed, before=palette + table),
               probes=probes((WHITE, half, BLUE, WHITE)), near=1)  # fmt: skip
    keyed = ((1, (0, 1, 1, 0)), (2, (0, 1, 2, 3)), (4, (0, 5, 10, 15)), (8, GREYS))
    for depth, values in keyed:
        key = chunk(b"tRNS", struct.pack(">H", values[0]))
        shades = greys((255, 255, 255, 255)) if depth == 1 else greys((255, 85, 170, 255))
        yield Case(name=f"alpha/grey-{depth}-bit.png", content=png(size, depth, 0, _packed(values, depth), before=key),
                   probes=shades)  # fmt: skip
    key = chunk(b"tRNS", struct.pack(">H", 10))
    yield Case(name="alpha/grey-4-bit-middle.png", probes=greys((0, 85, 255, 255)),
               content=png(size, 4, 0, _packed((0, 5, 10, 15), 4), before=key))  # fmt: skip
    key = chunk(b"tRNS", struct.pack(">H", _WIDE[1]))
    wide = rows(_quarter_array(_WIDE, ">u2"))
    yield Case(
        name="alpha/grey-16-bit.png", content=png(size, 16, 0, wide, before=key), probes=greys((0, 255, 170, 255))
    )
    key = chunk(b"tRNS", struct.pack(">HHH", *RED))
    yield Case(name="alpha/RGB.png", content=png(size, 8, 2, rows(np.asarray(quarters())), before=key),
               probes=probes((WHITE, *QUARTERS[1:])))  # fmt: skip
    deep = (np.asarray(quarters()).astype(">u2") * 257).astype(">u2")
    key = chunk(b"tRNS", struct.pack(">HHH", *(value * 257 for value in RED)))
    yield Case(name="alpha/RGB-16-bit.png", content=png(size, 16, 2, rows(deep), before=key),
               probes=probes((WHITE, *QUARTERS[1:])))  # fmt: skip
    lossless = saved(hidden, "WEBP", lossless=True, exact=True)
    yield Case(name="alpha/hidden.webp", content=lossless, probes=probes(_ON_WHITE), near=1)
    yield Case(name="alpha/hidden.avif", content=saved(hidden, "AVIF", quality=95),
               probes=probes(_ON_WHITE), near=12)  # fmt: skip
    yield Case(name="alpha/hidden.tif", content=saved(hidden, "TIFF"), probes=probes(_ON_WHITE))
    premultiplied = np.asarray(quarters("RGBA", ((0, 0, 0, 0), (*GREEN, 255), (20, 25, 105, 128), (*BLACK, 255))))
    associated = Tiff(data=premultiplied.tobytes(), bits=(8,) * 4, photometric=2, more=((338, 3, (1,)),))
    mixed: Colour = (147, 152, 232)  # blue's double on white, half of each
    yield Case(name="alpha/associated.tif", content=associated.content(), near=2,
               probes=probes((WHITE, GREEN, mixed, BLACK)))  # fmt: skip
    index = quarters("P", (0, 1, 2, 3))
    index.putpalette([value for colour in QUARTERS for value in colour])
    yield Case(
        name="alpha/index.gif", content=saved(index, "GIF", transparency=2), probes=probes((RED, GREEN, WHITE, WHITE))
    )


def _jpeg_modes() -> Iterator[Case]:
    colour, grey = quarters(size=(96, 64)), quarters("L", GREYS, (96, 64))
    size, places = (96, 64), probes(size=(96, 64))
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"quality": 95},
        "subsampled": {"subsampling": 2, "quality": 90},
        "full-chroma": {"subsampling": 0, "quality": 95},
        "progressive": {"progressive": True, "quality": 95},
        "optimised": {"optimize": True, "quality": 95},
        "restarts": {"restart_marker_blocks": 2, "quality": 95},
        "stored-as-RGB": {"keep_rgb": True, "quality": 95},
    }
    for name, options in kinds.items():
        yield Case(name=f"modes/{name}.jpg", content=saved(colour, "JPEG", **options), size=size,
                   near=6, probes=places)  # fmt: skip
    yield Case(name="modes/L.jpg", content=saved(grey, "JPEG", quality=95), size=size, near=3,
               probes=tuple((place, (v, v, v)) for (place, _), v in zip(places, GREYS, strict=True)))  # fmt: skip
    inks = quarters("CMYK", ((0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 0)), (96, 64))
    printed = probes(((255, 0, 0), (0, 255, 0), (0, 0, 255), WHITE), (96, 64))
    # Pillow writes Adobe's form, in which the numbers are inverted.
    yield Case(name="modes/CMYK.jpg", content=saved(inks, "JPEG", quality=95), size=(96, 64), near=8, probes=printed)


def _tiff_greys() -> Iterator[Case]:
    orders: tuple[tuple[Literal["<", ">"], str], ...] = (("<", "little"), (">", "big"))
    for order, name in orders:
        wide = Tiff(data=_quarter_array(_WIDE, order + "u2").tobytes(), bits=(16,), order=order)
        yield Case(name=f"modes/grey-16-bit-{name}.tif", content=wide.content(), probes=greys())
    white_is_zero = Tiff(data=_quarter_array(GREYS, "u1").tobytes(), photometric=0)
    yield Case(name="modes/white-is-zero.tif", content=white_is_zero.content(), probes=greys(GREYS[::-1]))
    inverted = Tiff(data=_quarter_array(_WIDE, "<u2").tobytes(), bits=(16,), photometric=0)
    yield Case(name="modes/white-is-zero-16-bit.tif", content=inverted.content(), probes=greys(GREYS[::-1]))
    pairs = _quarter_array((0, 1365, 2730, 4095), "u2").reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    twelve = Tiff(data=packed.astype("u1").tobytes(), bits=(12,))
    yield Case(name="modes/grey-12-bit.tif", content=twelve.content(), probes=greys())
    for name, values in {
        "grey-32-bit": _quarter_array(_WIDE, "i4"),
        "float-to-1": (_quarter_array(GREYS, "u1") / 255).astype("f4"),
        "float-to-255": _quarter_array(GREYS, "f4"),
        "float-to-65535": _quarter_array(_WIDE, "f4"),
    }.items():
        yield Case(name=f"modes/{name}.tif", content=saved(Image.fromarray(values), "TIFF"), probes=greys())
    for name, value in {"nan": np.nan, "infinite": np.inf, "negative": -1.0, "huge": 1e9}.items():
        values = np.full((HEIGHT, WIDTH), value, "f4")
        yield Case(name=f"modes/float-{name}.tif", content=saved(Image.fromarray(values), "TIFF"), fate="rejected",
                   says="values")  # fmt: skip


def _tiff_modes() -> Iterator[Case]:
    colour = quarters()
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate"):
        yield Case(
            name=f"modes/{compression}.tif", content=saved(colour, "TIFF", compression=compression), probes=probes()
        )
    yield Case(
        name="modes/jpeg.tif", content=saved(colour, "TIFF", compression="jpeg", quality=95), probes=probes(), near=8
    )
    fax = saved(quarters("1", (0, 1, 1, 0)), "TIFF", compression="group4")
    yield Case(name="modes/fax.tif", content=fax, probes=greys((0, 255, 255, 0)))
    yield Case(name="modes/P.tif", content=saved(colour.quantize(4), "TIFF"), probes=probes())
    inks = quarters("CMYK", ((0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 0)))
    printed = probes(((255, 0, 0), (0, 255, 0), (0, 0, 255), WHITE))
    yield Case(name="modes/CMYK.tif", content=saved(inks, "TIFF"), probes=printed)
    # L* a* b* of sRGB's red, green and blue under D50, in 8 bits (L* * 2.55, a* and b* + 128).
    lab = quarters("LAB", ((139, 209, 198), (224, 49, 209), (75, 196, 16), (255, 128, 128)))
    yield Case(name="modes/LAB.tif", content=saved(lab, "TIFF"), probes=printed, near=24)
    yield Case(name="modes/YCbCr.tif", content=saved(colour.convert("YCbCr"), "TIFF"), probes=probes(), near=3)
    deep = (np.asarray(colour).astype("<u2") * 257).astype("<u2")
    yield Case(name="modes/RGB-16-bit.tif", content=Tiff(data=deep.tobytes(), bits=(16,) * 3, photometric=2).content(),
               probes=probes())  # fmt: skip
    big = saved(colour, "TIFF", big_tiff=True)
    yield Case(name="modes/big-tiff.tif", content=big, probes=probes())
    several = saved(colour, "TIFF", save_all=True, append_images=[quarters(values=QUARTERS[::-1])])
    yield Case(name="modes/pages.tif", content=several, probes=probes(), warns=_FRAMES)
    strange = Tiff(data=bytes(WIDTH * HEIGHT * 4), bits=(32,), photometric=34892)
    yield Case(name="modes/strange-kind.tif", content=strange.content(), fate="rejected", says="TIFF")


def _other_modes() -> Iterator[Case]:
    colour = quarters()
    other = quarters(values=QUARTERS[::-1])
    for mode in ("1", "L", "P"):
        content = saved(quarters("1", (0, 1, 1, 0)).convert(mode), "BMP")
        yield Case(name=f"modes/{mode}.bmp", content=content, probes=greys((0, 255, 255, 0)))
    yield Case(name="modes/RGB.bmp", content=saved(colour, "BMP"), probes=probes())
    packed = b"\x18\0\x18\1\0\0" * 16 + b"\x18\2\x18\3\0\0" * 16 + b"\0\1"  # from the bottom up
    yield Case(name="modes/run-lengths.bmp", content=run_length_bmp((WIDTH, HEIGHT), packed), probes=probes())
    plain = saved(colour, "BMP")
    flipped = plain[:22] + struct.pack("<i", -HEIGHT) + plain[26:]
    yield Case(name="modes/top-down.bmp", content=flipped, probes=probes((BLUE, WHITE, RED, GREEN)))
    yield Case(name="modes/plain.gif", content=saved(colour.quantize(4), "GIF"), probes=probes())
    yield Case(name="modes/plain.webp", content=saved(colour, "WEBP", quality=95), probes=probes(), near=12)
    yield Case(name="modes/lossless.webp", content=saved(colour, "WEBP", lossless=True), probes=probes())
    yield Case(name="modes/plain.avif", content=saved(colour, "AVIF", quality=95), probes=probes(), near=12)
    for kind, suffix in (("GIF", "gif"), ("PNG", "png"), ("WEBP", "webp"), ("AVIF", "avif")):
        frames = saved(colour, kind, save_all=True, append_images=[other] * 3, duration=100)
        yield Case(name=f"modes/animation.{suffix}", content=frames, probes=probes(), near=14, warns=_FRAMES)
    hidden_first = saved(colour, "PNG", save_all=True, append_images=[other], default_image=True)
    yield Case(name="modes/animation-with-cover.png", content=hidden_first, probes=probes())
    small = bytearray(saved(Image.new("P", (4, 4), 0), "GIF", transparency=1, optimize=False))
    small[6:10] = struct.pack("<HH", 8, 8)  # the canvas; the only frame stands in its lower right quarter
    frame = small.index(b"\x2c\0\0\0\0")
    small[frame + 1 : frame + 5] = struct.pack("<HH", 4, 4)
    yield Case(
        name="modes/partial-frame.gif", content=bytes(small), size=(8, 8), probes=(((1, 1), WHITE), ((5, 5), BLACK))
    )
