"""`trainer plan` beside a real step: what was planned, and what the process really took.

    python scripts/benchmark/plan.py [--family sd1] [--resolution 256] [--folder FOLDER] [--out FILE]
    python scripts/benchmark/plan.py --plan-alone --family sdxl --resolution 1024

A model of true size with random weights is written (2.1 GB for sd1), planned, and trained for two steps on the
processor, each in a process of its own. Measured is anonymous resident memory, sampled every few milliseconds, beyond
what the process has after its imports; freed memory goes back to the system at once (glibc's MALLOC_ settings), so that
the peak is that of live memory. `--plan-alone` writes a model that takes no room on the disk, and plans it for CUDA.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from real_sizes import make, paint
from startup import environment

RECIPE: Final = """
name: planned
model: {kind: auto, weights: %(weights)s}
precision: bfloat16
data: {sources: [{kind: folder, path: pictures}], resolution: %(resolution)d, cache: {folder: cache}}
adapter: {kind: lora, rank: 16, alpha: 16}
gradient_checkpointing: %(checkpointing)s
compile: "off"
steps: 2
checkpoints: {every: 2}
previews: {prompts: []}
"""

_GIVING_BACK: Final = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
_PAUSE: Final = 0.004  # seconds between two looks


class Watch:
    """The most anonymous memory that this process has had since it was last asked."""

    def __init__(self) -> None:
        self._most = 0
        threading.Thread(target=self._look, daemon=True).start()

    def start(self) -> None:
        """Forget what was."""
        self._most = 0

    @property
    def most(self) -> int:
        """Bytes."""
        return max(self._most, anonymous())

    def _look(self) -> None:
        while True:
            self._most = max(self._most, anonymous())
            time.sleep(_PAUSE)


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def child_plan(recipe: Path, kind: Any) -> dict[str, Any]:
    """What is planned for the largest bucket, and how long planning takes."""
    from trainer.core.progress import phases
    from trainer.planning.memory_plan import largest_bucket, plan_memory
    from trainer.preparing import plan_data
    from trainer.recipe.reading import read_recipe

    import_modules()
    wanted = read_recipe(recipe)
    with phases(quiet=True) as progress:
        bucket = largest_bucket(plan_data(wanted, progress).buckets)
    began, busy = time.perf_counter(), time.process_time()
    plan = plan_memory(wanted, bucket, kind)
    spent = {"seconds": time.perf_counter() - began, "processor seconds": time.process_time() - busy}
    return spent | plan.as_json()


def child_train(recipe: Path) -> dict[str, Any]:
    """What two real steps take, by stages."""
    from trainer.assemble import assemble
    from trainer.core.progress import phases
    from trainer.loop.train import step
    from trainer.recipe.reading import read_recipe

    import_modules()
    watch = Watch()
    before = anonymous()
    with phases(quiet=True) as progress:
        run = assemble(read_recipe(recipe), resume=False, progress=progress)
    encoding = watch.most - before
    with run.trackers, run.ahead:
        for network in run.networks:
            network.train()
        step(run)  # the optimiser's state comes with the first one
        watch.start()
        loaded = anonymous() - before
        step(run)
    return {"imports": before, "until the first step": encoding, "between steps": loaded, "step": watch.most - before}


def import_modules() -> None:
    """Import what a run imports, so that what comes later is data."""
    import bitsandbytes
    import peft
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    del bitsandbytes, peft, AutoencoderKL, UNet2DConditionModel, CLIPTextModel


def write_hollow(folder: Path, family: Any) -> None:
    """A model of true size in diffusers' layout whose weights are a hole in the file."""
    from trainer.families.published import clip_tokenizer, published_configs
    from trainer.weights.original_names import PARTS, places_of

    configs = published_configs(family, "velocity" if family == "sd2" else "epsilon")
    pipeline = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(configs["scheduler"]), encoding="utf-8")
    for number, tokenizer in enumerate(("tokenizer", "tokenizer_2")[: 2 if family == "sdxl" else 1]):
        padding = "!" if family == "sd2" or number else "<|endoftext|>"
        shutil.copytree(clip_tokenizer(padding), folder / tokenizer)
    for part in PARTS[family]:
        header: dict[str, Any] = {}
        end = 0
        for place in places_of(family, part, configs[part]):
            size = 2
            for side in place.shape:
                size *= side
            header[place.name] = {"dtype": "F16", "shape": list(place.shape), "data_offsets": [end, end + size]}
            end += size
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(configs[part]), encoding="utf-8")
        name = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        text = json.dumps(header).encode("ascii")
        with (folder / part / f"{name}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)


def child(root: Path, *command: str) -> dict[str, Any]:
    """The last line that a process of ours prints."""
    own = str(Path(__file__).resolve())
    done = subprocess.run(
        [sys.executable, own, *command], cwd=root, env=os.environ | _GIVING_BACK, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Plans and, unless planning alone is asked for, the steps."""
    paint(root / "pictures", asked.resolution)
    weights = "model" if asked.plan_alone else "model.safetensors"
    (write_hollow if asked.plan_alone else make)(root / weights, asked.family)
    figures: dict[str, Any] = {}
    for checkpointing in ("false", "half", "true") if asked.plan_alone else ("false", "true"):
        recipe = RECIPE % {"weights": weights, "resolution": asked.resolution, "checkpointing": checkpointing}
        (root / "recipe.yaml").write_text(recipe, encoding="utf-8")
        name = f"checkpointing {checkpointing}"
        figures[name] = {"plan": child(root, "--plan", "cuda" if asked.plan_alone else "cpu")}
        step = sum(figures[name]["plan"]["moments"]["training step"].values())
        print(f"{name:22} planned step {step / 2**20:9.0f} MiB in {figures[name]['plan']['seconds']:.1f} s", flush=True)
        if not asked.plan_alone:
            shutil.rmtree(root / "runs", ignore_errors=True)
            figures[name]["real"] = real = child(root, "--train")
            figures[name]["planned by measured"] = ratio = round(step / real["step"], 3)
            # what a person sees is the whole process
            figures[name]["with imports"] = round((step + real["imports"]) / (real["step"] + real["imports"]), 3)
            print(f"{name:22} real step    {real['step'] / 2**20:9.0f} MiB; planned / measured {ratio}", flush=True)
    return figures


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("sd1", "sd2", "sdxl"), default="sd1")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--plan-alone", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plan", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plan or asked.train:
        recipe = Path("recipe.yaml")
        print(json.dumps(child_plan(recipe, asked.plan) if asked.plan else child_train(recipe)))
        return
    around = environment() | {"family": asked.family, "resolution": asked.resolution}
    print("  ".join(f"{name} {value}" for name, value in around.items()), flush=True)
    root = Path(tempfile.mkdtemp(prefix="plan-", dir=asked.folder))
    try:
        figures = measure(root, asked)
    finally:
        shutil.rmtree(root)
    if asked.out is not None:
        asked.out.write_text(json.dumps({"environment": around, "figures": figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
