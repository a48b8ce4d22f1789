"""Small files that want much: memory, time, or a division by nought."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from hostile_case import BLACK, WHITE, Case, Tiff, chunk, png, probes, quarters, run_length_bmp, saved, with_chunks
from PIL import Image

_TOO_MANY = "more than 64,000,000"


def bombs() -> list[Case]:
    """Bombs, and pictures of odd sizes."""
    return [*_headers(), *_inflating(), *_loops(), *_sizes()]


def _headers() -> Iterator[Case]:
    """Sizes that are only claimed."""
    for name, size in (("wide", (1 << 30, 1)), ("square", (65_535, 65_535)), ("just-over", (8_001, 8_000))):
        content = png(size, 8, 2, bytes(100))
        yield Case(name=f"bomb/{name}.png", content=content, fate="rejected", says=_TOO_MANY)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0))  # and the 900 million are there
    real = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", _deflated(112 << 20)) + chunk(b"IEND", b"")
    yield Case(name="bomb/real.png", content=real, fate="rejected", says=_TOO_MANY)
    gif = bytearray(saved(quarters().quantize(4), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield Case(name="bomb/canvas.gif", content=bytes(gif), fate="rejected", says="pixels")
    frame = gif.index(b"\x2c\0\0\0\0")
    gif[6:10] = struct.pack("<HH", 48, 32)
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 65_535, 65_535)
    yield Case(name="bomb/frame.gif", content=bytes(gif), fate="rejected", says="pixels")
    bmp = bytearray(saved(quarters(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 1_000_000, 1_000_000)
    yield Case(name="bomb/square.bmp", content=bytes(bmp), fate="rejected", says=_TOO_MANY)
    slow = run_length_bmp((8_000, 8_000), b"\0\0" * 1_000)
    yield Case(name="bomb/run-lengths.bmp", content=slow, fate="rejected", says="run-length")
    jpeg = bytearray(saved(quarters(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    yield Case(name="bomb/square.jpg", content=bytes(jpeg), fate="rejected", says=_TOO_MANY)
    jpeg[at : at + 4] = struct.pack(">HH", 8_000, 8_000)  # as much as is allowed, and almost no data
    yield Case(name="bomb/hollow.jpg", content=bytes(jpeg), fate="rejected", says="before its last row")
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff\xff\xff\xff"
    webp = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    yield Case(name="bomb/canvas.webp", content=webp, fate="rejected", says=_TOO_MANY)
    body = b"VP8L" + struct.pack("<I", 6) + b"\x2f\xff\xff\xff\x0f\0"
    webp = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    yield Case(name="bomb/lossless.webp", content=webp, fate="rejected", says=_TOO_MANY)
    lossy = bytearray(saved(quarters(), "WEBP"))
    lossy[26:30] = b"\xff\x3f\xff\x3f"
    yield Case(name="bomb/lossy.webp", content=bytes(lossy), fate="rejected", says=_TOO_MANY)
    for name, more in (
        ("square", ((256, 4, (60_000,)), (257, 4, (60_000,)), (278, 4, (60_000,)))),
        ("strip", ((278, 4, (0xFFFFFFFF,)),)),
    ):
        tiff = Tiff(data=bytes(48 * 32), more=more).content()
        square = name == "square"
        yield Case(name=f"bomb/{name}.tif", content=tiff, fate="rejected" if square else "accepted",
                   says=_TOO_MANY if square else "", probes=probes([BLACK] * 4))  # fmt: skip
    tile = Tiff(data=b"", more=((322, 4, (65_520,)), (323, 4, (65_520,)), (324, 4, (8,)), (325, 4, (8,))))
    yield Case(name="bomb/tile.tif", content=tile.content(), fate="rejected", says=_TOO_MANY)
    avif = bytearray(saved(quarters(), "AVIF"))
    at = avif.index(b"ispe") + 8
    avif[at : at + 8] = struct.pack(">II", 30_000, 30_000)
    yield Case(name="bomb/square.avif", content=bytes(avif), fate="rejected", says="AVIF")


def _inflating() -> Iterator[Case]:
    """What stands beside the picture and is never looked at: the picture itself is good."""
    plain = saved(quarters(), "PNG")
    gigabyte = _deflated(1 << 30)
    for name, kind, body in (
        ("text", b"zTXt", b"Comment\0\0" + gigabyte),
        ("unicode-text", b"iTXt", b"Comment\0\1\0\0\0" + gigabyte),
        ("metadata", b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + gigabyte),
    ):
        yield Case(name=f"bomb/{name}.png", content=with_chunks(plain, chunk(kind, body)), probes=probes())
    many = chunk(b"zTXt", b"Comment\0\0" + _deflated(1 << 20)) * 200
    yield Case(name="bomb/many-texts.png", content=with_chunks(plain, many), probes=probes())
    exif = chunk(b"zTXt", b"Raw profile type exif\0\0" + gigabyte)
    yield Case(name="bomb/exif-text.png", content=with_chunks(plain, exif), fate="rejected", says="PNG")
    header = struct.pack(">IIBBBBB", 48, 32, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", gigabyte) + chunk(b"IEND", b"")
    yield Case(name="bomb/data.png", content=plain[:8] + body, probes=probes([BLACK] * 4))
    claims = b"".join(struct.pack("<HHII", tag, 7, 60_000, 26) for tag in range(0x9000, 0x9000 + 5_000))
    data = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5_000) + claims  # 300 MB out of 60 KB
    jpeg = saved(quarters(), "JPEG", quality=95, subsampling=0, exif=data)
    yield Case(name="bomb/exif.jpg", content=jpeg, probes=probes(), near=8)
    big = b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + claims * 12
    yield Case(name="bomb/exif.png", content=with_chunks(plain, chunk(b"eXIf", big)), probes=probes())
    for name, more, says in (
        ("numbers", (65_000, 4, (0,) * 1_000_001), "claims to hold"),
        ("strips", (273, 4, (8,) * 200_000), "200,000 strips"),
    ):
        tiff = Tiff(data=quarters().tobytes(), bits=(8, 8, 8), photometric=2, more=(more,))
        yield Case(name=f"bomb/{name}.tif", content=tiff.content(), fate="rejected", says=says)
    few = Tiff(data=quarters().tobytes(), bits=(8, 8, 8), photometric=2, more=((278, 4, (16,)),))
    yield Case(name="bomb/few-strips.tif", content=few.content(), fate="rejected", says="needs 2")
    comments = b"".join(b"\xff\xfe\xff\xff" + bytes(65_533) for _ in range(100))
    plain_jpeg = saved(quarters(), "JPEG", quality=95, subsampling=0)
    yield Case(name="bomb/comments.jpg", content=plain_jpeg[:2] + comments + plain_jpeg[2:], probes=probes(), near=8)
    for side, count in ((64, 300), (4_096, 3_000)):
        scans = saved(Image.new("L", (side, side)), "JPEG", progressive=True)
        last = scans.rindex(b"\xff\xda")
        repeated = scans[:-2] + scans[last:-2] * count + scans[-2:]
        many = count == 3_000
        yield Case(name=f"bomb/scans-{side}.jpg", content=repeated, size=(64, 64),
                   fate="rejected" if many else "accepted", says="passes" if many else "")  # fmt: skip


def _deflated(size: int) -> bytes:
    """Zeros: one mebibyte is packed, and its packet repeated (RFC 1950, RFC 1951), so that nobody has to hold them."""
    packing = zlib.compressobj(9, wbits=-15)
    piece = packing.compress(bytes(1 << 20)) + packing.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", size % 65_521, 1)
    return b"\x78\x9c" + piece * (size >> 20) + b"\x03\0" + checksum


def _loops() -> Iterator[Case]:
    """What goes round in circles, or on for very long."""
    circle = Tiff(data=quarters().tobytes(), bits=(8, 8, 8), photometric=2).content()
    start = struct.unpack("<I", circle[4:8])[0]
    yield Case(name="bomb/circle.tif", content=circle[:-4] + struct.pack("<I", start), probes=probes(),
               warns=("several frames",))  # fmt: skip
    pages = b"".join(struct.pack("<HHHIII", 1, 256, 4, 1, 1, start + 1000 + 18 * page) for page in range(1, 50_000))
    begun = circle[:-4] + struct.pack("<I", len(circle)) + pages
    yield Case(name="bomb/pages.tif", content=begun, probes=probes(), warns=("several frames",))
    frames = saved(quarters().quantize(4), "GIF", save_all=True, append_images=[
        quarters(values=((n, 0, 0), (0, n, 0), (0, 0, n), WHITE)).quantize(4) for n in range(200)
    ])  # fmt: skip
    yield Case(name="bomb/frames.gif", content=frames, probes=probes(), warns=("several frames",))
    unknown = chunk(b"teSt", b"") * 20_000
    yield Case(name="bomb/chunks.png", content=with_chunks(saved(quarters(), "PNG"), unknown), probes=probes())


def _sizes() -> Iterator[Case]:
    for width, height in ((1, 1), (1, 3000), (3000, 1), (2, 3), (7, 5)):
        image = Image.new("RGB", (width, height), WHITE)
        for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("AVIF", "avif")):
            content = saved(image, kind)
            yield Case(name=f"size/{width}x{height}.{suffix}", content=content, size=(width, height),
                       probes=(((0, 0), WHITE),), near=4)  # fmt: skip
    for name, size in (("no-width", (0, 8)), ("no-height", (8, 0)), ("nothing", (0, 0)), ("negative", (1 << 31, 1))):
        says = _TOO_MANY if name == "negative" else "PNG"
        yield Case(name=f"size/{name}.png", content=png(size, 8, 0, bytes(80)), fate="rejected", says=says)
    wall = Image.fromarray(np.full((1, 65_000), 255, np.uint8))
    yield Case(name="size/wall.png", content=saved(wall, "PNG"), size=(65_000, 1), probes=(((9, 0), WHITE),))
    most = png((8_000, 8_000), 1, 0, bytes(1_001 * 8_000))  # as many pixels as are allowed
    yield Case(name="size/most.png", content=most, size=(8_000, 8_000), probes=(((9, 9), BLACK),))
