"""Whole models of their true sizes with random weights: in, trained for two steps, out, and in again.

    python scripts/benchmark/real_sizes.py --family sd1|sd2|sdxl [--resolution 256] [--folder FOLDER] [--out FILE]

No published weights are needed: each network is made from the configuration that the package carries, and filled with
normal numbers scaled so that a signal keeps its size from layer to layer. Each stage is a process of its own; its
seconds and its greatest resident memory are told. `load` reads every network into bfloat16 and keeps all of them; what
it needs is compared with the bytes of the weights as used, beyond what an empty process with torch and diffusers has.
On a machine without a GPU everything runs on the processor.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from startup import environment

RECIPE = """
name: real
model: {kind: auto, weights: %(weights)s}
precision: bfloat16
data: {sources: [{kind: folder, path: pictures}], resolution: %(resolution)d, cache: {folder: cache}}
adapter: {kind: lora, rank: 8, alpha: 8}
steps: 2
checkpoints: {every: 2}
previews: {prompts: []}
"""

_NUMBERS: Final = 1 << 24  # drawn once; tensors are parts of them, since to draw billions takes minutes


class Cost(NamedTuple):
    """What a stage took."""

    seconds: float
    megabytes: float  # resident, at most


def make(path: Path, family: Any) -> None:
    """Write a checkpoint of the family's true size with random weights, tensor by tensor."""
    import torch

    from trainer.families.published import published_configs
    from trainer.weights.checkpoint import write_checkpoint
    from trainer.weights.original_names import PARTS, Part, places_of

    prediction = "velocity" if family == "sd2" else "epsilon"
    configs = published_configs(family, prediction)
    parts: dict[Part, Random] = {
        part: Random({place.name: place.shape for place in places_of(family, part, configs[part])})
        for part in PARTS[family]
    }
    write_checkpoint(path, family, parts, configs, {}, torch.float16)


class Random(Mapping[str, Any]):
    """Tensors that are made when they are asked for, the same each time."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        import torch

        self._shapes = shapes
        self._numbers = torch.randn(_NUMBERS, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, name: str) -> Any:
        import torch

        shape = torch.Size(self._shapes[name])
        if name.endswith("bias"):
            return torch.zeros(shape)
        if len(shape) == 1:  # of a normalisation
            return torch.ones(shape)
        inputs = 1 if "embedding" in name and "linear" not in name else shape[1:].numel()
        start = zlib.crc32(name.encode()) % (_NUMBERS // 2)
        numbers = self._numbers[start : start + min(shape.numel(), _NUMBERS // 2)]
        whole = numbers.repeat(-(-shape.numel() // len(numbers)))[: shape.numel()]
        return whole.reshape(shape) * (0.02 if inputs == 1 else inputs**-0.5)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def nothing() -> None:
    """Import what loading imports, and load nothing."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from trainer.families.loading import open_weights

    print(json.dumps({"imported": len([torch, AutoencoderKL, UNet2DConditionModel, CLIPTextModel, open_weights])}))
    del CLIPTextModelWithProjection


def load(path: Path) -> None:
    """Read every network into bfloat16 and keep all; print the bytes of the weights."""
    import torch

    from trainer.families.loading import open_weights
    from trainer.weights.original_names import PARTS

    source = open_weights(str(path))
    networks = [source.load(part, torch.bfloat16) for part in PARTS[source.facts.family]]
    size = sum(tensor.nbytes for network in networks for tensor in network.parameters())
    print(json.dumps({"bytes": size}))


def paint(folder: Path, side: int) -> None:
    """Four pictures with captions."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")


def stage(folder: Path, *command: str) -> tuple[Cost, str]:
    """Run a process; what it took, and what it printed."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=told, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        text = told.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text[-3000:]}")
    return Cost(round(time.perf_counter() - began, 1), round(usage.ru_maxrss / 1024, 1)), text


def measure(root: Path, family: str, resolution: int) -> dict[str, Any]:
    """All stages."""
    own = str(Path(__file__).resolve())
    trainer = ("-m", "trainer")
    figures: dict[str, Any] = {}

    def run(name: str, *command: str) -> tuple[Cost, str]:
        cost, text = stage(root, *command)
        figures[name] = cost._asdict()
        print(f"{name:36} {cost.seconds:8.1f} s {cost.megabytes:10.1f} MB", flush=True)
        return cost, text

    run("make a checkpoint, float16", own, "--make", "model.safetensors", "--family", family)
    figures["bytes on disk"] = (root / "model.safetensors").stat().st_size
    run("inspect", *trainer, "weights", "inspect", "model.safetensors")
    empty, _ = run("imports alone", own, "--nothing")
    for name, path in (("single file", "model.safetensors"), ("folder", "model")):
        if name == "folder":
            run("convert to a folder", *trainer, "weights", "convert", "model.safetensors", "model", "--to", "folder")
        cost, text = run(f"load from a {name}, bfloat16", own, "--load", path)
        used = json.loads(text.strip().splitlines()[-1])["bytes"] / 1024**2
        figures[f"{name}: memory beyond imports, times the weights"] = round(
            (cost.megabytes - empty.megabytes) / used, 3
        )
    run("convert back", *trainer, "weights", "convert", "model", "again.safetensors", "--to", "single-file")
    figures["single file -> folder -> single file: same bytes"] = same(
        root / "model.safetensors", root / "again.safetensors"
    )
    paint(root / "pictures", resolution)
    (root / "recipe.yaml").write_text(RECIPE % {"weights": "model.safetensors", "resolution": resolution}, "utf-8")
    run("train two steps", *trainer, "train", "recipe.yaml")
    run("inspect the result", *trainer, "weights", "inspect", "runs/real/real.safetensors")
    drawing = ("--prompt", "picture 1", "--steps", "1", "--size", str(resolution))
    run("draw one step with the result", *trainer, "sample", "runs/real", *drawing)
    return figures


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes behind their headers, whose metadata differ."""
    with one.open("rb") as first, other.open("rb") as second:
        for file in (first, second):
            file.seek(int.from_bytes(file.read(8), "little"), 1)
        while True:
            here, there = first.read(1 << 24), second.read(1 << 24)
            if here != there:
                return False
            if not here:
                return True


def main() -> None:
    """Run the stages, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("sd1", "sd2", "sdxl"))
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; up to 30 GB for sdxl")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nothing", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        return make(asked.make, asked.family)
    if asked.load:
        return load(asked.load)
    if asked.nothing:
        return nothing()
    around = environment() | {"family": asked.family, "resolution": asked.resolution}
    print("  ".join(f"{name} {value}" for name, value in around.items()), flush=True)
    root = Path(tempfile.mkdtemp(prefix="real-sizes-", dir=asked.folder))
    try:
        figures = measure(root, asked.family, asked.resolution)
    finally:
        shutil.rmtree(root)
    for name, value in figures.items():
        if not isinstance(value, dict):
            print(f"{name:60} {value}")
    if asked.out is not None:
        content = json.dumps({"environment": around, "figures": figures}, indent=2) + "\n"
        asked.out.write_text(content, encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
