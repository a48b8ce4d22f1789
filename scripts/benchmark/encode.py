"""How quickly the cache is filled, against the encoder alone on pixels that are decoded already.

    python scripts/benchmark/encode.py [--model bundled|sd15] [--count N] [--chunks N] [--threads N] [--out FILE]
    python scripts/benchmark/encode.py --epochs [--threads N] [--out FILE]

Pictures: JPEGs (quality 90, smooth shapes with grain), each of another content, with sides of `--side` pixels: 128 for
the bundled base, whose own pictures have 64 to 128 and which encodes them at 64 x 64; 768 for the autoencoder of Stable
Diffusion 1.5's size with random weights, which encodes them at 512 x 512. `fill_cache` looks its plan up, reads, checks
the digest, decodes, resizes, encodes, and has the entries on the disk when it ends; the encoder alone gets a tensor
that lies ready, in the same batches, as often as `fill_cache` calls it. Both take turns chunk by chunk, each going
first half of the time; the figure is the median of the chunks' ratios. All pictures have one caption, encoded before.
Then the whole is filled a second time. Where the encoder runs on the processor, decoding takes time from it unless a
core is free (`--threads`); so the processor seconds of both are told too.

With `--epochs`: the seconds a training step of the bundled base takes (LoRA of rank 8, batch 4, forward, backward and
optimiser; and apart from it the data side, `CachedBatches.numbered`) with 100 and with 100,000 pictures in the cache,
in turns. The entries are random numbers of the right shape; no picture files stand behind them: training never asks.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from startup import environment

from trainer.adapters.lora import Lora
from trainer.batch import Batch, Conditioning, Encoders, Posterior
from trainer.core.device import Precision, pick_device
from trainer.core.seeds import Seeds
from trainer.data.batches import CachedBatches, DataSettings
from trainer.data.cache import TensorCache
from trainer.data.encoding import at_once
from trainer.data.example import Example, Size
from trainer.data.examples import ExampleTable
from trainer.data.filling import Needs, caches_of, fill_cache
from trainer.data.planning import Share
from trainer.data.scanning import scan
from trainer.families.sd1 import Sd1
from trainer.objective.objective import Objective

SEEDS = Seeds(0)


class Case(NamedTuple):
    """A model, and what it is given."""

    encoders: Encoders
    side: int  # of the pictures on disk, pixels, unless another is asked for
    resolution: int  # at which they are encoded


def bundled() -> Case:
    """The bundled base."""
    return Case(Sd1(weights="bundled").load(Precision.float32, pick_device()).encoders(), 128, 64)


def sd15() -> Case:
    """An autoencoder of Stable Diffusion 1.5's size with random weights, and no text encoder."""
    from diffusers import AutoencoderKL

    shape: dict[str, Any] = {  # diffusers types these as tuples of one
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    network: Any = AutoencoderKL(**shape, layers_per_block=2, latent_channels=4, norm_num_groups=32, sample_size=512)
    network = network.to(device=pick_device(), memory_format=torch.channels_last).requires_grad_(False)

    def encode(pixels: torch.Tensor) -> Posterior:
        posterior = network.encode(pixels.to(pick_device(), memory_format=torch.channels_last)).latent_dist
        return Posterior(mean=posterior.mean * 0.18215, deviation=posterior.std * 0.18215)

    encoders = Encoders(
        encode_pictures=encode,
        encode_words=lambda captions: Conditioning(tokens=torch.zeros(len(captions), 77, 768)),
        pictures_identity="random",
        words_identity="none",
        scale=8,
    )
    return Case(encoders, 768, 512)


def write(folder: Path, count: int, side: int) -> None:
    """Write pictures, each of another content, with one caption."""
    folder.mkdir(parents=True)
    grain = np.random.default_rng(0).normal(0, 9, (side, side, 1)).astype(np.float32)
    for number in range(count):
        random = np.random.default_rng(number)
        shapes = random.integers(0, 256, (side // 64, side // 64, 3), dtype=np.uint8)
        smooth = Image.fromarray(shapes).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(smooth, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, format="JPEG", quality=90)
        (folder / f"{number:06}.jpg").write_bytes(content.getvalue())
        (folder / f"{number:06}.txt").write_text("a picture", encoding="utf-8")


class Cost(NamedTuple):
    """Seconds."""

    wall: float
    processor: float  # of all threads of this process


def cost(work: Callable[[], object]) -> Cost:
    """What it takes; on a GPU, until it is really done."""
    began, processor = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Cost(time.perf_counter() - began, time.process_time() - processor)


def filling(case: Case, count: int, chunks: int, root: Path) -> dict[str, float]:
    """The figures of filling the cache."""
    write(root / "pictures", count, case.side)
    settings = DataSettings.model_validate(
        {
            "sources": [{"kind": "folder", "path": root / "pictures"}],
            "resolution": case.resolution,
            "cache": {"folder": root / "cache"},
        }
    )
    examples = scan(settings.parts, settings.limits).accepted
    bucket = settings.buckets_of(examples, case.encoders.scale)[0]
    batch = torch.rand(at_once(bucket), 3, bucket.height, bucket.width) * 2 - 1

    def fill(some: ExampleTable) -> None:
        fill_cache(some, settings, case.encoders, SEEDS)

    def encode(pictures: int) -> None:
        with torch.no_grad():
            for _ in range(-(-pictures // len(batch))):
                case.encoders.encode_pictures(batch)

    encode(2 * len(batch))
    case.encoders.encode_words(["a picture"] * 16)
    fill(examples[:1])  # the words, and everything that is imported when it is first used
    size = -(-(count - 1) // chunks)
    parts = [examples[start : start + size] for start in range(1, count, size)]
    ours: list[Cost] = []
    alone: list[Cost] = []
    for number, part in enumerate(parts):
        for turn in ("fill", "encode") if number % 2 else ("encode", "fill"):
            if turn == "fill":
                ours.append(cost(lambda part=part: fill(part)))
            else:
                alone.append(cost(lambda part=part: encode(len(part))))
    again = cost(lambda: fill(examples))
    ratios = [bare.wall / whole.wall for whole, bare in zip(ours, alone, strict=True)]
    first, bare = sum(one.wall for one in ours), sum(one.wall for one in alone)
    return {
        "pictures": count - 1,
        "side of a picture, pixels": case.side,
        "pictures a chunk": size,
        "pictures a batch": len(batch),
        "fill_cache, pictures a second": round((count - 1) / first, 2),
        "encoder alone, pictures a second": round((count - 1) / bare, 2),
        "rate against the encoder alone, median": round(statistics.median(ratios), 3),
        "least chunk": round(min(ratios), 3),
        "greatest chunk": round(max(ratios), 3),
        "processor seconds of fill_cache": round(sum(one.processor for one in ours), 2),
        "processor seconds of the encoder alone": round(sum(one.processor for one in alone), 2),
        "seconds of the first filling": round(first, 2),
        "seconds of the second filling": round(again.wall, 2),
        "second against first": round(again.wall / first, 4),
    }


def random_examples(count: int) -> ExampleTable:
    """Examples without files."""
    return ExampleTable.of(
        Example(
            source=0, locator=f"{n}.png", name=f"{n}.png", key=f"{n:064x}", size=Size(96 if n % 2 else 64, 64),
            captions=(f"picture {n % 1000}",),
        )
        for n in range(count)
    )  # fmt: skip


def random_settings(root: Path, count: int) -> DataSettings:
    """How they are trained on."""
    return DataSettings.model_validate(
        {"sources": [{"kind": "folder", "path": root}], "resolution": 64, "cache": {"folder": root / str(count)}}
    )


def random_cache(root: Path, count: int, encoders: Encoders) -> CachedBatches:
    """Batches of `count` pictures whose entries are random numbers."""
    examples, settings = random_examples(count), random_settings(root, count)
    needs = Needs(examples=examples, settings=settings, encoders=encoders, seeds=SEEDS, batch=4)
    pictures, words = caches_of(settings, encoders)
    plan = needs.plan(Share())
    keys = (
        (key, (4, work.bucket.height // encoders.scale, work.bucket.width // encoders.scale))
        for work in plan.works(np.arange(count), lambda keys: [False] * len(keys))
        for key in work.keys
    )
    write_random(pictures, ((key, {"mean": shape, "deviation": shape}) for key, shape in keys))
    tokens = tuple(encoders.encode_words(["a"]).tokens.shape[1:])
    write_random(words, ((work.key, {"tokens": tokens}) for work in needs.texts()))
    return CachedBatches(examples, settings, encoders, SEEDS, batch=4)


def write_random(cache: TensorCache, wanted: Iterator[tuple[str, dict[str, tuple[int, ...]]]]) -> None:
    """Entries of random numbers, in shards of 4096."""
    generator = torch.Generator().manual_seed(0)
    entries: dict[str, dict[str, torch.Tensor]] = {}
    for key, shapes in wanted:
        entries[key] = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
        if len(entries) == 4096:
            cache.write(entries)
            entries = {}
    cache.write(entries)
    cache.save_index()


def training_step(case: Case) -> Callable[[Batch], None]:
    """A step of the bundled base, as the loop makes it."""
    model = Sd1(weights="bundled").load(Precision.float32, pick_device())
    trainable = Lora(rank=8).attach(model, SEEDS)
    optimizer = torch.optim.AdamW(trainable.parameters(), lr=1e-4)
    objective = Objective()

    def step(batch: Batch) -> None:
        if not isinstance(batch.words, Conditioning):
            raise TypeError("the words of this benchmark come out of the cache")
        words = batch.words.to(pick_device())
        loss = objective(
            lambda noisy, t, b: model.predict(noisy, model.schedule.index(t), words, b.geometry),
            batch.to(pick_device()),
            model.schedule,
            model.prediction,
            SEEDS,
        )
        loss.value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def epochs(case: Case, steps: int, root: Path) -> dict[str, float]:
    """The figures of training with few and with many pictures."""
    sets = {count: random_cache(root, count, case.encoders) for count in (100, 100_000)}
    step = training_step(case)
    whole: dict[int, list[float]] = {count: [] for count in sets}
    data: dict[int, list[float]] = {count: [] for count in sets}
    for number in range(steps):
        for count, batches in sets.items():
            began = time.perf_counter()
            batch = batches.numbered(number)
            data[count].append(time.perf_counter() - began)
            step(batch)
            whole[count].append(time.perf_counter() - began)
    figures: dict[str, float] = {"steps": steps}
    for count in sets:
        # The first of all waits for the index and the order of the epoch.
        figures[f"{count} pictures: seconds a step, median"] = round(statistics.median(whole[count][1:]), 5)
        figures[f"{count} pictures: of which the data side"] = round(statistics.median(data[count][1:]), 5)
        figures[f"{count} pictures: seconds of the first batch"] = round(data[count][0], 4)
    pairs = zip(whole[100][1:], whole[100_000][1:], strict=True)
    figures["many against few, a step, median"] = round(statistics.median(many / few for few, many in pairs), 3)
    return figures


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("bundled", "sd15"), default="bundled")
    parser.add_argument("--count", type=int, help="pictures; 10,000 for the bundled base, 12 for sd15")
    parser.add_argument("--side", type=int, help="of the pictures, in pixels")
    parser.add_argument("--chunks", type=int, help="10 for the bundled base, 4 for sd15")
    parser.add_argument("--epochs", action="store_true")
    parser.add_argument("--steps", type=int, default=200, help="with --epochs: steps of each of the two")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else pick_device().type
    versions = {"torch": torch.__version__, "pillow": Image.__version__}
    around = environment() | versions | {"device": device, "torch threads": torch.get_num_threads()}
    print("  ".join(f"{name} {value}" for name, value in around.items()))
    case = sd15() if asked.model == "sd15" else bundled()
    case = case._replace(side=asked.side or case.side)
    count, chunks = (12, 4) if asked.model == "sd15" else (10_000, 10)
    with tempfile.TemporaryDirectory(dir=asked.folder) as root:
        figures = (
            epochs(case, asked.steps, Path(root))
            if asked.epochs
            else filling(case, (asked.count or count) + 1, asked.chunks or chunks, Path(root))
        )
    for name, value in figures.items():
        print(f"{name:44} {value}")
    if asked.out is not None:
        content = json.dumps({"environment": around, "figures": figures}, indent=2) + "\n"
        asked.out.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
