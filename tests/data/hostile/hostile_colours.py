"""Orientations in every place where a file can keep one, and colour profiles, right, wrong and broken."""

import struct
import zlib
from collections.abc import Iterator

from hostile_case import BLUE, GREEN, RED, WHITE, Case, Tiff, chunk, probes, quarters, saved, with_chunks
from PIL import Image, ImageCms

_DAMAGED = ("EXIF data are damaged",)
_STORED = {  # how a camera stores an upright picture under each number
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_SHARP = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}


def colours() -> list[Case]:
    """Orientations and profiles."""
    return [*_orientations(), *_odd_orientations(), *_profiles(), *_odd_profiles()]


def exif(orientation: int, *, kind: int = 3, order: str = "<") -> bytes:
    """EXIF data that hold nothing else."""
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value + struct.pack(order + "I", 0)


def _turned(orientation: int) -> Image.Image:
    image = quarters()
    return image.transpose(_STORED[orientation]) if orientation in _STORED else image


def _orientations() -> Iterator[Case]:
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("AVIF", "avif")):
        for number in range(1, 9):
            tag = Image.Exif()
            tag[0x0112] = number
            content = saved(_turned(number), kind, exif=tag, **_SHARP.get(kind, {}))
            yield Case(name=f"turned/{number}.{suffix}", content=content, probes=probes(), near=12)


def _odd_orientations() -> Iterator[Case]:
    turned, plain = _turned(6), quarters()

    def jpeg(image: Image.Image, data: bytes) -> bytes:
        return saved(image, "JPEG", exif=b"Exif\0\0" + data, **_SHARP["JPEG"])

    for name, image, data, warns in (
        ("big-endian", turned, exif(6, order=">"), ()),
        ("as-long", turned, exif(6, kind=4), ()),
        ("as-byte", turned, exif(6, kind=1), ()),
        ("twice-named", turned, b"Exif\0\0" + exif(6), ()),
        ("nought", plain, exif(0), ()),
        ("ninety-nine", plain, exif(99), ()),
        ("empty", plain, b"", ()),
        ("garbage", plain, b"\xde\xad\xbe\xef" * 8, _DAMAGED),
        ("cut", plain, exif(6)[:14], _DAMAGED),
        ("beyond-the-end", plain, b"II*\0" + struct.pack("<I", 0x7FFFFFFF), _DAMAGED),
        ("many-entries", plain, b"II*\0\x08\0\0\0\xff\xff" + bytes(24), _DAMAGED),
        ("circle", turned, exif(6)[:-4] + struct.pack("<I", 8), ()),  # the next directory is this one
    ):
        yield Case(name=f"turned/exif-{name}.jpg", content=jpeg(image, data), probes=probes(), near=12, warns=warns)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    yield Case(
        name="turned/xmp.jpg", content=saved(turned, "JPEG", xmp=xmp, **_SHARP["JPEG"]), probes=probes(), near=12
    )
    png = saved(turned, "PNG")
    as_text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    yield Case(name="turned/xmp.png", content=with_chunks(png, as_text), probes=probes())
    yield Case(
        name="turned/at-the-end.png", content=with_chunks(png, chunk(b"eXIf", exif(6)), last=True), probes=probes()
    )
    body = b"Exif\0\0" + exif(6)
    raw = b"\nexif\n%8d\n%s\n" % (len(body), body.hex().encode())
    for kind, data in ((b"tEXt", raw), (b"zTXt", b"\0" + zlib.compress(raw))):
        written = chunk(kind, b"Raw profile type exif\0" + data)
        yield Case(name=f"turned/{kind.decode()}.png", content=with_chunks(png, written), probes=probes())
    yield Case(name="turned/broken.png", content=with_chunks(saved(plain, "PNG"), chunk(b"eXIf", b"no")),
               probes=probes(), warns=_DAMAGED)  # fmt: skip
    yield Case(name="turned/broken.webp", content=saved(plain, "WEBP", lossless=True, exif=b"II*\0\xff\xff\xff\xff"),
               probes=probes(), warns=_DAMAGED)  # fmt: skip


def swapped_profile() -> bytes:
    """sRGB with the primaries of red and blue exchanged, so that using it cannot be overlooked."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    places = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    profile[places[b"rXYZ"] : places[b"rXYZ"] + 4] = b"bXYZ"
    profile[places[b"bXYZ"] : places[b"bXYZ"] + 4] = b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def _profiles() -> Iterator[Case]:
    swapped = swapped_profile()
    exchanged = probes(((30, 30, 220), (40, 200, 30), (210, 50, 40), WHITE))
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tif"), ("AVIF", "avif")):
        content = saved(quarters(), kind, icc_profile=swapped, **_SHARP.get(kind, {}))
        yield Case(name=f"profile/swapped.{suffix}", content=content, probes=exchanged, near=14)
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Case(name="profile/same.png", content=saved(quarters(), "PNG", icc_profile=same), probes=probes())
    hidden = quarters("RGBA", ((*RED, 255), (*GREEN, 0), (*BLUE, 255), (*WHITE, 255)))
    both = probes(((30, 30, 220), WHITE, (210, 50, 40), WHITE))
    yield Case(
        name="profile/swapped-and-hidden.png", content=saved(hidden, "PNG", icc_profile=swapped), probes=both, near=2
    )
    index = saved(quarters().quantize(4), "PNG", icc_profile=swapped)
    yield Case(name="profile/swapped-palette.png", content=index, probes=exchanged, near=2)
    turned = saved(_turned(6), "PNG", icc_profile=swapped, exif=b"Exif\0\0" + exif(6))
    yield Case(name="profile/swapped-and-turned.png", content=turned, probes=exchanged, near=2)


def _odd_profiles() -> Iterator[Case]:
    swapped = swapped_profile()
    plain = saved(quarters(), "PNG")
    for name, profile, warning in (
        ("lab", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), "not for RGB"),
        ("printer", swapped[:16] + b"CMYK" + swapped[20:], "colour profile"),
        ("grey", swapped[:16] + b"GRAY" + swapped[20:], "colour profile"),
        ("nonsense", b"nonsense" * 40, "damaged"),
        ("cut", swapped[:200], "damaged"),
        ("header-only", swapped[:128], "damaged"),
        ("one-byte", b"\0", "damaged"),
        ("zeros", bytes(3000), "damaged"),
    ):
        content = saved(quarters(), "PNG", icc_profile=profile)
        yield Case(name=f"profile/{name}.png", content=content, probes=probes(), warns=(warning,))
    huge = chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(50_000_000)))
    yield Case(name="profile/bomb.png", content=with_chunks(plain, huge), probes=probes(), warns=("more than",))
    large = swapped + bytes(2_000_000)  # more than Pillow's own reader takes; a scanner's table of colours is as large
    written = chunk(b"iCCP", b"large\0\0" + zlib.compress(large))
    yield Case(name="profile/large.png", content=with_chunks(plain, written), near=2,
               probes=probes(((30, 30, 220), (40, 200, 30), (210, 50, 40), WHITE)))  # fmt: skip
    for name, body in (("no-name", b"\xff" * 100), ("not-compressed", b"name\0\0" + swapped)):
        yield Case(name=f"profile/{name}.png", content=with_chunks(plain, chunk(b"iCCP", body)), probes=probes(),
                   warns=("damaged",))  # fmt: skip
    for name, kind, body, warns in (
        ("usual-gamma", b"gAMA", struct.pack(">I", 45_455), ()),
        ("linear", b"gAMA", struct.pack(">I", 100_000), ("gamma is 1",)),
        ("no-gamma", b"gAMA", bytes(4), ()),
        ("srgb-by-number", b"cICP", b"\1\x0d\0\1", ()),
        ("wide-and-bright", b"cICP", b"\x09\x10\0\1", ("9/16",)),
        ("cut-number", b"cICP", b"\x09", ("9/0",)),
    ):
        content = with_chunks(plain, chunk(kind, body))
        yield Case(name=f"profile/{name}.png", content=content, probes=probes(), warns=warns)
    jpeg = bytearray(saved(quarters(), "JPEG", icc_profile=swapped, **_SHARP["JPEG"]))
    jpeg[jpeg.index(b"ICC_PROFILE\0") + 13] = 3  # of three parts, two are missing
    yield Case(name="profile/part-missing.jpg", content=bytes(jpeg), probes=probes(), near=8)
    tag = (34675, 1, tuple(b"nonsense" * 20))
    broken = Tiff(data=quarters().tobytes(), bits=(8, 8, 8), photometric=2, more=(tag,))
    yield Case(name="profile/nonsense.tif", content=broken.content(), probes=probes(), warns=("damaged",))
