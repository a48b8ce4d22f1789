"""A training step: its seconds and its memory, against a minimal loop and against what its arithmetic needs.

    python scripts/benchmark/train_step.py --family bundled|sd1|sd2|sdxl [--resolution 256] [--batch 1]
        [--precision bfloat16] [--checkpointing false|true|half] [--compile off|auto|blocks|graph]
        [--optimizer adamw_8bit] [--adapter lora|full] [--quantize none|int8|nf4|float8] [--resident 1.0]
        [--memory 8GiB] [--previews] [--pairs 20] [--block 1] [--weights FILE] [--out FILE]
    python scripts/benchmark/train_step.py --figures [--folder FOLDER] [--out FILE]

Networks of their true sizes have random weights, written once into a file that --weights keeps for the next time. The
run is the program's own, assembled from a recipe; the minimal loop is the least that trains the same LoRA in the same
network: latents and words at hand, noise drawn, forward, loss, backward, clipping, the same optimiser. Both go in turn,
`block` steps each, in one process; told is the median of the pairs' ratios, since other programs slow both alike. On a
busy machine without a GPU, compare the processor seconds, with one thread (OMP_NUM_THREADS=1): threads that wait spin.
`--figures` measures every case that a goal is set for, each in a process of its own; it needs a CUDA device.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from real_sizes import make, paint
from startup import environment

if TYPE_CHECKING:
    import torch

    from trainer.loop.run import Run

Step = Callable[[], object]

_SHARED: Final = ("--pairs", "5", "--block", "10", "--precision", "bfloat16")
FIGURES: Final[dict[str, tuple[tuple[str, ...], dict[str, float]]]] = {
    "SD1.5 512 px, compiled": (
        ("--family", "sd1", "--resolution", "512", "--checkpointing", "false", "--compile", "graph"),
        {"milliseconds": 15},
    ),
    "SD1.5 512 px, checkpointed": (("--family", "sd1", "--resolution", "512", "--previews"), {"GiB": 2.5}),
    "SD1.5 512 px, NF4": (
        ("--family", "sd1", "--resolution", "512", "--quantize", "nf4", "--previews", "--memory", "3GiB"),
        {"GiB": 1.5},
    ),
    "SDXL 1024 px, checkpointed": (
        ("--family", "sdxl", "--resolution", "1024", "--compile", "auto", "--previews", "--memory", "8GiB"),
        {"GiB": 6.5, "milliseconds": 60},
    ),
    "SDXL 1024 px, NF4": (
        ("--family", "sdxl", "--resolution", "1024", "--quantize", "nf4", "--previews", "--memory", "6GiB"),
        {"GiB": 4.0},
    ),
    "SDXL 1024 px, streamed": (
        ("--family", "sdxl", "--resolution", "1024", "--resident", "0.4", "--previews", "--memory", "6GiB"),
        {"GiB": 4.0},
    ),
    "SDXL 1024 px, whole U-Net": (
        ("--family", "sdxl", "--resolution", "1024", "--adapter", "full", "--memory", "12GiB"),
        {"GiB": 10.0},
    ),
}
"""What is set as a goal for a GPU: arguments, and the most that is allowed."""


def recipe_file(root: Path, asked: argparse.Namespace, weights: str) -> Path:
    """The recipe of the run that is measured."""
    adapter: dict[str, Any] = {"kind": "lora", "rank": 16}
    if asked.adapter == "full":
        adapter = {"kind": "full", "weights": "bfloat16"}
    content: dict[str, Any] = {
        "name": "step",
        "model": {"kind": "auto", "weights": weights, "quantize": asked.quantize, "resident": asked.resident},
        "precision": asked.precision,
        "data": {
            "sources": [{"kind": "folder", "path": str(root / "pictures")}],
            "resolution": asked.resolution,
            "cache": {"folder": str(root / "cache")},
        },
        "adapter": adapter,
        "optimizer": {"kind": asked.optimizer, "rate": 1e-4},
        "batch": asked.batch,
        "steps": 100_000,
        "gradient_checkpointing": {"false": False, "true": True, "half": "half"}[asked.checkpointing],
        "compile": asked.compile,
        "memory": asked.memory,
        "previews": {"prompts": ["picture 1"] if asked.previews else [], "draw": {"steps": 4}},
        "runs": str(root / "runs"),
    }
    path = root / "recipe.json"  # JSON is YAML
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def minimal_step(run: "Run", optimizer: "torch.optim.Optimizer") -> Step:
    """The least that trains the same LoRA in the same network."""
    import torch
    from torch.nn.functional import mse_loss

    device = run.accelerator.device
    batch = run.batches.numbered(0).to(device)
    words: Any = batch.words
    dtype = next(own for own in run.model.denoiser.parameters() if not own.requires_grad).dtype
    signal, noise_part = (table.to(device) for table in (run.model.schedule.signal, run.model.schedule.noise))
    parameters = list(run.trainable.parameters())

    def step() -> None:
        noise = torch.randn_like(batch.latents)
        t = torch.randint(0, 1000, (len(batch),), device=device)
        a, s = signal[t][:, None, None, None], noise_part[t][:, None, None, None]
        words_now = type(words)(tokens=words.tokens, pooled=words.pooled)
        predicted = run.model.predict((a * batch.latents + s * noise).to(dtype), t, words_now, batch.geometry)
        loss = mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class Seconds(NamedTuple):
    """What a step took."""

    wall: float
    processor: float  # of all threads of this process


def timed(deed: Step, block: int, device: "torch.device") -> Seconds:
    """Seconds a step, of `block` steps one after the other; the device has done them when this returns."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(block):
        deed()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds((time.perf_counter() - began) / block, (time.process_time() - used) / block)


def floors(deed: Step, dtype: "torch.dtype", device: "torch.device") -> dict[str, float]:
    """What the arithmetic of a step takes at the rates at which this machine multiplies and copies large matrices."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        deed()
    traffic = Traffic()
    with traffic:
        deed()
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    other = torch.empty_like(matrix)
    multiplying = min(timed(lambda: torch.mm(matrix, matrix, out=other), 3, device).wall for _ in range(4))
    copying = min(timed(lambda: torch.neg(matrix, out=other), 3, device).wall for _ in range(4))
    flops, moved = counter.get_total_flops(), traffic.bytes
    return {
        "TFLOP": flops / 1e12,
        "kernels": traffic.calls,
        "GB moved, nothing fused": moved / 1e9,
        "seconds of multiplying": flops * multiplying / (2 * side**3),
        "seconds of moving": moved * copying / (2 * matrix.nbytes),
    }


class Traffic:
    """Counts calls that make tensors, and the bytes that they read and write."""

    def __init__(self) -> None:
        self.bytes = 0
        self.calls = 0
        self._mode: Any = None

    def __enter__(self) -> "Traffic":
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        outer = self

        class Counting(TorchDispatchMode):
            def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = call(*args, **(kwargs or {}))
                if not any(getattr(argument.alias_info, "is_write", True) is False for argument in _aliased(call)):
                    tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
                    outer.bytes += sum(tensor.nbytes for tensor in tensors)
                    outer.calls += 1
                return result

        self._mode = Counting()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._mode.__exit__(*error)


def _aliased(call: Any) -> list[Any]:
    """The arguments of which an operator gives back a view, or which it changes."""
    return [argument for argument in call._schema.arguments if argument.alias_info is not None]


def measure(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """All figures of one case."""
    from trainer.assemble import assemble
    from trainer.core.progress import Silence
    from trainer.loop.train import step
    from trainer.recipe.reading import read_recipe

    began = time.perf_counter()
    recipe = read_recipe(recipe_file(root, asked, "bundled" if asked.family == "bundled" else str(asked.weights)))
    run = assemble(recipe, resume=False, progress=Silence())
    device = run.accelerator.device
    figures: dict[str, Any] = {"seconds of assembling": time.perf_counter() - began}

    def ours() -> None:
        step(run)

    with run.trackers, run.ahead:
        run.previews.draw_base()
        for network in run.networks:
            network.train()
        figures |= begun(run, ours, previews=asked.previews)
        least = None
        if asked.adapter != "full":
            # the parameters themselves: what joins them is ours
            least = minimal_step(run, recipe.optimizer.build(run.trainable.groups()))
            timed(least, 1, device)
        figures |= in_pairs(ours, least, asked, device)
        run.ledger.settle()
        if least is not None:
            figures |= floors(least, recipe.precision.dtype, device)
    return figures | {"way of passing": type(run.passing).__name__}


def begun(run: "Run", ours: Step, *, previews: bool) -> dict[str, Any]:
    """The first steps, with a preview between them on demand, and the memory that they took."""
    import torch

    from trainer.core.device import peak_bytes
    from trainer.loop.train import preview

    device = run.accelerator.device
    some = 8 if _on_gpu(device) else 1
    figures: dict[str, Any] = {"seconds of the first step": timed(ours, 1, device).wall}
    figures["seconds of the steps after it"] = timed(ours, some, device).wall * some
    if previews:
        preview(run)
        timed(ours, some, device)  # what a preview put away comes back
    run.ledger.settle()
    # of ours alone: the minimal loop has an optimiser's state of its own
    figures["GiB"] = peak_bytes(device) / 2**30
    if _on_gpu(device):
        figures["GiB reserved"] = torch.cuda.max_memory_reserved(device) / 2**30
    return figures


def _on_gpu(device: "torch.device") -> bool:
    return device.type == "cuda"


def in_pairs(ours: Step, least: Step | None, asked: argparse.Namespace, device: "torch.device") -> dict[str, Any]:
    """Both loops in turn, who begins changing from pair to pair."""
    seconds: list[Seconds] = []
    least_seconds: list[Seconds] = []
    for number in range(asked.pairs):
        pair = [("ours", ours), *([] if least is None else [("least", least)])]
        found = {name: timed(deed, asked.block, device) for name, deed in (pair if number % 2 else pair[::-1])}
        seconds.append(found["ours"])
        least_seconds += [found["least"]] if "least" in found else []
    figures: dict[str, Any] = {
        "milliseconds": statistics.median(one.wall for one in seconds) * 1000,
        "milliseconds, least": min(one.wall for one in seconds) * 1000,
    }
    if least_seconds:
        pairs = list(zip(seconds, least_seconds, strict=True))
        ratios = [one.wall / other.wall for one, other in pairs]
        processor = [one.processor / other.processor for one, other in pairs]
        figures["ours / minimal loop, median of pairs"] = statistics.median(ratios)
        figures["the same in processor seconds"] = statistics.median(processor)
        figures["ratios"] = [round(ratio, 4) for ratio in ratios]
        figures["ratios in processor seconds"] = [round(ratio, 4) for ratio in processor]
    return figures


@contextlib.contextmanager
def prepared(asked: argparse.Namespace) -> Generator[Path]:
    """A folder with pictures and, for true sizes, random weights."""
    with tempfile.TemporaryDirectory(prefix="train-step-", dir=asked.folder) as made:
        root = Path(made)
        paint(root / "pictures", asked.resolution)
        if asked.family != "bundled":
            asked.weights = asked.weights or root / "model.safetensors"
            if not asked.weights.exists():
                make(asked.weights, asked.family)
        yield root


def all_figures(asked: argparse.Namespace) -> dict[str, Any]:
    """Every case that has a goal, each in a process of its own."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="train-step-", dir=asked.folder) as made:
        for name, (case, goals) in FIGURES.items():
            family = case[case.index("--family") + 1]
            out = Path(made) / "figures.json"
            more = ("--weights", str(Path(made) / f"{family}.safetensors"), "--out", str(out))
            done = subprocess.run([sys.executable, __file__, *_SHARED, *case, *more], check=False)
            if done.returncode:
                figures[name] = {"failed": done.returncode}
                continue
            found = json.loads(out.read_text("utf-8"))["figures"]
            figures[name] = found | {"goals": goals, "reached": all(found[key] <= most for key, most in goals.items())}
            print(f"{name:32} {'reached' if figures[name]['reached'] else 'MISSED'}  {goals}", flush=True)
    return figures


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("bundled", "sd1", "sd2", "sdxl"), default="bundled")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--checkpointing", choices=("false", "true", "half"), default="true")
    parser.add_argument("--compile", choices=("off", "auto", "blocks", "graph"), default="off")
    parser.add_argument("--optimizer", default="adamw_8bit")
    parser.add_argument("--adapter", choices=("lora", "full"), default="lora")
    parser.add_argument("--quantize", choices=("none", "int8", "nf4", "float8"), default="none")
    parser.add_argument("--resident", type=float, default=1.0)
    parser.add_argument("--memory")
    parser.add_argument("--previews", action="store_true")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--weights", type=Path, help="a checkpoint; made there where it is missing")
    parser.add_argument("--folder", type=Path, help="where temporary files are made")
    parser.add_argument("--figures", action="store_true", help="every case that a goal is set for")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print."""
    import torch

    asked = arguments()
    torch.set_num_threads(asked.threads)
    cuda = torch.cuda.is_available()
    around: dict[str, Any] = environment() | {"torch": torch.__version__, "threads": asked.threads}
    around["device"] = torch.cuda.get_device_name() if cuda else "cpu"
    print("  ".join(f"{name} {value}" for name, value in around.items()), flush=True)
    if asked.figures and not cuda:
        raise SystemExit("the figures are those of a CUDA device, and there is none")
    if asked.figures:
        figures = all_figures(asked)
    else:
        with prepared(asked) as root:
            figures = measure(root, asked)
        for name, value in figures.items():
            print(f"{name:40} {value if not isinstance(value, float) else round(value, 4)}", flush=True)
    if asked.out is not None:
        said = {key: str(value) for key, value in vars(asked).items() if key not in ("out", "folder", "weights")}
        content = {"environment": around, "arguments": said, "figures": figures}
        asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
