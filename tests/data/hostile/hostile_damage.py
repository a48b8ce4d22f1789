"""Damaged files, files that are no pictures, and files that are two things at once."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from hostile_case import Case, chunk, probes, quarters, saved, with_chunks
from PIL import Image

_CUT = "cut short"


def damage() -> list[Case]:
    """What broke, what never was a picture, and what carries a stowaway."""
    return [*_cuts(), *_broken_pngs(), *_broken_jpegs(), *_no_pictures(), *_other_names(), *_polyglots()]


def noise(mode: str = "RGB", side: int = 64) -> Image.Image:
    """What no format can make small."""
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def _cuts() -> Iterator[Case]:
    for name, kind, options in (
        ("plain.png", "PNG", {}),
        ("baseline.jpg", "JPEG", {}),
        ("progressive.jpg", "JPEG", {"progressive": True}),
        ("lossy.webp", "WEBP", {}),
        ("lossless.webp", "WEBP", {"lossless": True}),
        ("plain.gif", "GIF", {}),
        ("plain.bmp", "BMP", {}),
        ("raw.tif", "TIFF", {}),
        ("lzw.tif", "TIFF", {"compression": "tiff_lzw"}),
        ("plain.avif", "AVIF", {}),
    ):
        content = saved(noise(), kind, **options)
        for part in (30, 60, 95):
            cut = content[: len(content) * part // 100]
            yield Case(name=f"cut/{part}-percent-{name}", content=cut, fate="rejected", says=_CUT)
        yield Case(name=f"cut/head-{name}", content=content[:16], fate="rejected", says=_CUT)


def _broken_pngs() -> Iterator[Case]:
    content = saved(noise(), "PNG")
    data = content.index(b"IDAT")
    length = struct.unpack(">I", content[data - 4 : data])[0]

    def changed(at: int, by: int = 1) -> bytes:
        return content[:at] + bytes([content[at] ^ by]) + content[at + 1 :]

    for name, broken in (
        ("flipped-bit", changed(data + 1000, 4)),
        ("wrong-data-checksum", changed(data + 4 + length)),
        ("wrong-header-checksum", changed(29)),
        ("wrong-end-checksum", changed(len(content) - 1)),
        ("no-end", content[:-12]),
        ("no-data", content[:33] + chunk(b"IEND", b"")),
        ("empty-data", content[:33] + chunk(b"IDAT", b"") + chunk(b"IEND", b"")),
        ("few-rows", content[:33] + chunk(b"IDAT", zlib.compress(bytes(193 * 20))) + chunk(b"IEND", b"")),
        ("not-deflated", content[:33] + chunk(b"IDAT", bytes(12_352)) + chunk(b"IEND", b"")),
        ("unknown-filter", content[:33] + chunk(b"IDAT", zlib.compress(b"\x09" * 12_352)) + chunk(b"IEND", b"")),
        ("no-header", content[:8] + content[33:]),
        (
            "of-a-phone",
            with_chunks(content, chunk(b"CgBI", b"\x50\0\x20\x02")),
        ),  # Apple's own, which only looks like PNG
        ("carriage-returns", content.replace(b"\r\n", b"\n")),  # sent as text
        ("no-high-bits", bytes(value & 0x7F for value in content)),
    ):
        yield Case(name=f"broken/{name}.png", content=broken, fate="rejected")
    plain = saved(quarters(), "PNG")
    black = saved(Image.new("RGB", (64, 64)), "PNG")
    yield Case(name="broken/all-black.png", content=black, size=(64, 64), probes=(((9, 63), (0, 0, 0)),))
    for name, good in (
        ("trailing-garbage", plain + b"\xde\xad" * 500),
        ("second-picture-behind", plain + saved(noise(), "PNG")),
        ("unknown-chunks", with_chunks(plain, chunk(b"xyZz", b"?"), chunk(b"prVt", bytes(99)))),
        ("text-in-between", with_chunks(plain, chunk(b"tEXt", b"parameters\0" + b"masterpiece, " * 200_000))),
        ("invalid-animation", with_chunks(plain, chunk(b"acTL", bytes(8)), chunk(b"fcTL", b"short"))),
        ("bad-times", with_chunks(plain, chunk(b"tIME", b"\xff"), chunk(b"pHYs", b""), chunk(b"gAMA", b"\0"))),
    ):
        yield Case(name=f"broken/{name}.png", content=good, probes=probes())


def _broken_jpegs() -> Iterator[Case]:
    content = saved(noise(), "JPEG", quality=95)
    scan = content.index(b"\xff\xda")
    size = content.index(b"\xff\xc0") + 5
    for name, broken in (
        ("start-only", b"\xff\xd8\xff"),
        ("start-and-end", b"\xff\xd8\xff\xd9"),
        ("headers-only", content[:scan]),
        ("no-height", content[:size] + b"\0\0" + content[size + 2 :]),
        ("of-12-bits", content[: size - 1] + b"\x0c" + content[size:]),
        ("segment-beyond-the-end", content[:20] + b"\xff\xe1\xff\xff" + content[20:90]),
    ):
        yield Case(name=f"broken/{name}.jpg", content=broken, fate="rejected", says="JPEG")
    tables = content.index(b"\xff\xc4")
    yield Case(
        name="broken/no-tables.jpg", content=content[:tables] + content[scan:], size=(64, 64)
    )  # as cameras' films do
    for name, options in (
        ("baseline", {}),
        ("progressive", {"progressive": True}),
        ("restarts", {"restart_marker_blocks": 3}),
    ):
        whole = saved(noise(), "JPEG", quality=95, **options)
        closed = whole[: len(whole) // (8 if name == "progressive" else 2)] + b"\xff\xd9"
        yield Case(name=f"broken/cut-and-closed-{name}.jpg", content=closed, fate="rejected", says=_CUT)
    middle = saved(Image.new("RGB", (64, 64), (128, 128, 128)), "JPEG")
    yield Case(
        name="broken/all-middle-grey.jpg", content=middle, size=(64, 64), probes=(((60, 60), (128, 128, 128)),), near=1
    )
    unended = ("no end mark",)
    yield Case(name="broken/zeros-behind.jpg", content=content[: scan + 3000] + bytes(len(content) - scan - 3000),
               size=(64, 64), warns=unended)  # fmt: skip
    yield Case(name="broken/trailing-garbage.jpg", content=saved(quarters(), "JPEG", quality=95) + bytes(5000),
               probes=probes(), near=45)  # fmt: skip
    fine = saved(quarters(), "JPEG", quality=95, subsampling=0)
    yield Case(name="broken/two-in-one.jpg", content=fine + content, probes=probes(), near=8)
    start = fine[:2]
    for name, extra in (
        ("malformed-frames", b"\xff\xe2" + struct.pack(">H", 20) + b"MPF\0II*\0" + bytes(10)),
        (
            "malformed-photoshop",
            b"\xff\xed" + struct.pack(">H", 28) + b"Photoshop 3.0\0" + b"8BIM\xff\xff\xff\xff\xff\xff\xff\xff",
        ),
        ("padded", b"\xff" * 40),
        ("empty-comment", b"\xff\xfe\0\x02"),
    ):
        yield Case(name=f"broken/{name}.jpg", content=start + extra + fine[2:], probes=probes(), near=8)


def _no_pictures() -> Iterator[Case]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a")
    for name, content, says in (
        ("empty.png", b"", "empty"),
        ("one-byte.png", b"\x89", "no picture"),
        ("text.png", b"hello, I am a text\n" * 20, "no picture"),
        ("vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "SVG"),
        ("vector-with-head.png", b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg onload="alert(1)"/>', "SVG"),
        ("error-page.jpg", b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "HTML"),
        ("denied.webp", b"<HTML><body>403</body></HTML>", "HTML"),
        ("answer.jpg", b'{"error": "rate limit exceeded"}', "JSON"),
        ("postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n(%stdout) (w) file (PWNED) writestring\n", "EPS"),
        ("document.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        ("layers.png", b"8BPS\0\x01" + bytes(200), "PSD"),
        ("icon.png", b"\0\0\x01\0\x01\0" + bytes(60), "ICO"),
        ("archive.png", buffer.getvalue(), "ZIP"),
        ("squeezed.png", gzip.compress(b"a"), "GZIP"),
        ("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        ("zeros.jpg", bytes(4096), "zeros"),
        ("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC"),
        ("film.gif", b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2" + bytes(64), "film"),
        ("long.png", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
        ("two-thousand.jpg", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
        ("exposed.tif", b"v/1\x01\x02\0\0\0" + bytes(40), "OpenEXR"),
        ("noise.png", np.random.default_rng(1).bytes(5000), "no picture"),
        ("fits.png", b"SIMPLE  =                    T" + b" " * 4000, "no picture"),
        ("only-BM.bmp", b"BM" + bytes(100), "BMP"),
        ("empty-box.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        ("other.heic", b"whatever", "not read"),
    ):
        yield Case(name=f"not/{name}", content=content, fate="rejected", says=says)
    for name, content in (
        ("notes.md", b"# notes"),
        ("drawing.psd", b"8BPS"),
        ("drawing.svg", b"<svg/>"),
        ("set.zip", b"PK"),
    ):
        yield Case(name=f"not/{name}", content=content, fate="ignored", says="not a picture")


def _other_names() -> Iterator[Case]:
    png, jpeg, webp, gif = (
        saved(quarters(), kind, **options)
        for kind, options in (("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("GIF", {}))
    )
    named = ("by its content",)
    for name, content, warns in (
        ("a-png.jpg", png, ()),
        ("a-jpeg.webp", jpeg, ()),
        ("a-webp.png", webp, ()),
        ("a-gif.jpeg", gif, ()),
        ("CAPITALS.PNG", png, ()),
        ("a.JPeG", jpeg, ()),
        ("a.jfif", jpeg, ()),
        ("b.jpe", jpeg, ()),
        ("no-suffix", png, named),
        ("a.dat", jpeg, named),
        ("a.png.part", png, named),
        ("two.dots.png", png, ()),
    ):
        yield Case(name=f"suffix/{name}", content=content, probes=probes(), near=45, warns=warns)


def _polyglots() -> Iterator[Case]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../evil.class", b"\xca\xfe\xba\xbe")
    script = b"*/=alert(1)/*<script>alert(document.domain)</script><?php system($_GET['c']); ?>"
    flat = quarters().quantize(4)
    yield Case(name="two/gifar.gif", content=saved(flat, "GIF") + buffer.getvalue(), probes=probes())
    yield Case(name="two/script.gif", content=saved(flat, "GIF", comment=script), probes=probes())
    yield Case(name="two/page.jpg", content=saved(quarters(), "JPEG", comment=script, quality=95, subsampling=0),
               probes=probes(), near=8)  # fmt: skip
    written = chunk(b"tEXt", b"Comment\0" + script)
    yield Case(name="two/page.png", content=with_chunks(saved(quarters(), "PNG"), written), probes=probes())
    yield Case(name="two/archive.png", content=saved(quarters(), "PNG") + buffer.getvalue(), probes=probes())
    bitmap = saved(quarters(), "BMP")
    yield Case(name="two/page.bmp", content=bitmap + script, probes=probes())
