"""How quickly the account of a folder is made: every picture hashed, its header read, decoded from first byte to last.

    python scripts/benchmark/scanning.py [--count 10000] [--chunks 20] [--processes N] [--folder FOLDER] [--out FILE]

Pictures: one-megapixel JPEGs (1152 x 896, quality 90, 4:2:0, about 0.4 MB) of smooth shapes with grain. `--distinct`
of them (200) are painted and encoded; the others are the same with a comment of their own, so that every file has
bytes, and a key, of its own, and costs the same to decode. They are written into a temporary folder and read once
before anything is measured, so that the disk does not count.

Against: a bare loop in a pool of processes, one a processor, which opens each file with Pillow and decodes it, and does
nothing else: no digest, no account. Both take turns on the same folders, chunk by chunk, each going first half of the
time; the figure is the median of the chunks' ratios. Then everything is looked at again, with the verdicts remembered.
Memory is the peak of this process, which does the account; the pool's processes do not count.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from PIL import Image
from startup import environment

from trainer.data.decoding import ImageLimits
from trainer.data.scanning import scan
from trainer.data.sources.folder import ImageFolder

SIZE = (1152, 896)


def paint(number: int) -> bytes:
    """A JPEG of smooth shapes with grain, which is about as hard to decode as a photograph."""
    random = np.random.default_rng(number)
    shapes = Image.fromarray(random.integers(0, 256, (14, 18, 3), dtype=np.uint8)).resize(
        SIZE, Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 9, (SIZE[1], SIZE[0], 1))
    pixels = np.clip(np.asarray(shapes, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
    with tempfile.SpooledTemporaryFile() as file:
        Image.fromarray(pixels).save(file, format="JPEG", quality=90)
        file.seek(0)
        return file.read()


def with_comment(jpeg: bytes, comment: bytes) -> bytes:
    """The same picture in other bytes: with a comment segment behind the first marker."""
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def write(root: Path, count: int, distinct: int, chunks: int) -> list[Path]:
    """Write the pictures into a folder a chunk."""
    contents = [paint(number) for number in range(min(distinct, count))]
    folders = [root / f"{chunk:03}" for chunk in range(chunks)]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(count):
        content = with_comment(contents[number % len(contents)], f"picture {number}".encode())
        (folders[number % chunks] / f"{number:06}.jpg").write_bytes(content)
    return folders


def decode(path: str) -> int:
    """The bare work: decode one file; gives the number of its pixels."""
    with Image.open(path) as image:
        image.load()
        return image.width * image.height


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def account(folders: list[Path], memory: Path) -> None:
    """Our account of some folders."""
    found = scan([ImageFolder(path=folder) for folder in folders], ImageLimits(), memory=memory)
    if found.rejected or not len(found.accepted):
        raise SystemExit("the account refused pictures that are sound")


def peak() -> int:
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Write the pictures, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    around = environment() | {"pillow": Image.__version__, "processes of the bare loop": asked.processes}
    print("  ".join(f"{name} {value}" for name, value in around.items()))
    # Begun now, while this process is small: the painting is done in a process of its own, and forgotten with it.
    with (
        multiprocessing.Pool(1) as painter,
        multiprocessing.Pool(asked.processes) as pool,
        tempfile.TemporaryDirectory(dir=asked.folder) as root,
    ):
        figures = measure(Path(root), asked, painter, pool)
    for name, value in figures.items():
        print(f"{name:42} {value}")
    if asked.out is not None:
        content = json.dumps({"environment": around, "figures": figures}, indent=2) + "\n"
        asked.out.write_text(content, encoding="utf-8")


def measure(root: Path, asked: argparse.Namespace, painter: Pool, pool: Pool) -> dict[str, float]:
    """The figures."""
    folders = painter.apply(write, (root / "pictures", asked.count, asked.distinct, asked.chunks))
    files = {folder: [str(file) for file in sorted(folder.iterdir())] for folder in folders}
    size = sum(Path(file).stat().st_size for group in files.values() for file in group)
    for group in files.values():
        pool.map(read, group, chunksize=16)
    time.sleep(2.5)  # a file that was changed a moment ago is not trusted to be unchanged, so no verdict is remembered
    account(folders[:1], root / "warm up")
    before = peak()
    ours: list[float] = []
    bare: list[float] = []
    for number, folder in enumerate(folders):
        for turn in ("account", "bare") if number % 2 else ("bare", "account"):
            if turn == "account":
                ours.append(seconds(partial(account, [folder], root / "verdicts")))
            else:
                bare.append(seconds(partial(pool.map, decode, files[folder], chunksize=2)))
    first_peak = peak()
    again = seconds(partial(account, folders, root / "verdicts"))
    ratios = [b / o for o, b in zip(ours, bare, strict=True)]
    return {
        "pictures": asked.count,
        "megabytes a picture": round(size / asked.count / 1e6, 3),
        "account, pictures a second": round(asked.count / sum(ours), 1),
        "bare decode loop, pictures a second": round(asked.count / sum(bare), 1),
        "rate against the bare loop, median": round(
            statistics.median(b / o for o, b in zip(ours, bare, strict=True)), 3
        ),
        "least chunk": round(min(ratios), 3),
        "greatest chunk": round(max(ratios), 3),
        "seconds of the first account": round(sum(ours), 2),
        "seconds of the second account": round(again, 2),
        "second against first": round(again / sum(ours), 4),
        "peak memory, MB": first_peak,
        "of which before the account, MB": before,
    }


def read(path: str) -> int:
    """Read a file, so that it lies in the system's memory."""
    return len(Path(path).read_bytes())


if __name__ == "__main__":
    main()
