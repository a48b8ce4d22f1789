"""Whether a LoRA that is trained on a quantised base is as good as one on the plain base.

    python scripts/benchmark/quantised.py [--steps 150] [--batch 8] [--data datasets/blob] [--every 6] [--out FILE]

For each form of the frozen weights (bfloat16 as they are, int8, float8, nf4) a LoRA is trained on the bundled base,
with the same seeds, pictures, noise and timesteps. Every sixth picture is kept back; on those the loss is measured
before and after, at fixed timesteps with fixed noise, on the base in that form, and with the LoRA moved onto the plain
base, which is where people use it. The goal: the held-out loss lies within 1 % of that of a LoRA from the plain base.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from startup import environment
from torch import Tensor

from trainer.adapters.lora import Lora
from trainer.batch import Conditioning
from trainer.core.device import Precision, pick_device
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1

_FORMS: Final = ("none", "int8", "float8", "nf4")
_TIMES: Final = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
_GOAL: Final = 0.01


class Pictures:
    """Latents and words of a folder's pictures, encoded once."""

    def __init__(self, model: DiffusionModel, files: Sequence[Path]) -> None:
        side = model.resolution
        pixels = torch.stack([_pixels(file, side) for file in files])
        self.latents = model.encode_pictures(pixels).mean
        self.words = model.encode_words(
            [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
        )
        model.release_encoders()

    def __len__(self) -> int:
        return len(self.latents)


def loss_of(model: DiffusionModel, pictures: Pictures, rows: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """The mean squared error of the prediction, []."""
    clean = pictures.latents[rows]
    a, s = (column[times].view(-1, 1, 1, 1).to(clean) for column in (model.schedule.signal, model.schedule.noise))
    words = Conditioning(tokens=pictures.words.tokens[rows])
    with torch.autocast(clean.device.type, torch.bfloat16):
        predicted = model.predict(a * clean + s * noise, times.to(clean.device), words)
    target = model.prediction.target(clean, noise, a, s)
    return (predicted.float() - target).square().mean()


def held_out(model: DiffusionModel, pictures: Pictures) -> float:
    """The loss over all pictures and the fixed timesteps, with fixed noise."""
    chance = torch.Generator().manual_seed(99)
    model.denoiser.eval()
    losses: list[float] = []
    with torch.no_grad():
        for t in _TIMES:
            rows = torch.arange(len(pictures))
            noise = torch.randn(pictures.latents.shape, generator=chance).to(pictures.latents)
            losses.append(float(loss_of(model, pictures, rows, torch.full((len(pictures),), t), noise)))
    return sum(losses) / len(losses)


def measure(form: Any, training: Sequence[Path], kept: Sequence[Path], options: argparse.Namespace) -> dict[str, float]:
    """Train one LoRA; losses before and after, and seconds a step."""
    device = pick_device()
    model = Sd1(quantize=form).load(Precision.bfloat16, device)
    seen, unseen = Pictures(model, training), Pictures(model, kept)
    before = held_out(model, unseen)
    adapter = Lora(rank=16)
    trainable = adapter.attach(model, Seeds(options.seed))
    optimizer = torch.optim.AdamW(trainable.parameters(), lr=options.rate)
    chance = torch.Generator().manual_seed(options.seed)
    model.denoiser.train()
    started = time.perf_counter()
    for _ in range(options.steps):
        rows = torch.randint(len(seen), (options.batch,), generator=chance)
        times = torch.randint(1000, (options.batch,), generator=chance)
        noise = torch.randn((options.batch, *seen.latents.shape[1:]), generator=chance).to(seen.latents)
        loss_of(model, seen, rows, times, noise).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = (time.perf_counter() - started) / options.steps
    after = held_out(model, unseen)
    plain = Sd1().load(Precision.bfloat16, device)
    moved = adapter.attach(plain, Seeds(options.seed))
    moved.load_state(trainable.state())
    return {"before": before, "after": after, "on_the_plain_base": held_out(plain, unseen), "seconds_a_step": seconds}


def main() -> None:
    """Measure each form, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--forms", nargs="+", choices=_FORMS, default=_FORMS)
    parser.add_argument("--data", type=Path, default=Path("datasets/blob"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    files = sorted(path for path in options.data.glob("*.png") if path.with_suffix(".txt").is_file())
    kept = files[:: options.every]
    training = [file for file in files if file not in kept]
    results: dict[str, dict[str, float]] = {}
    for form in options.forms:
        results[form] = measure(form, training, kept, options)
        print(form, {name: round(value, 5) for name, value in results[form].items()}, flush=True)
    for form, result in results.items() if "none" in results else ():
        base = results["none"]["after"]
        differences = {name: result[name] / base - 1 for name in ("after", "on_the_plain_base")}
        met = all(abs(difference) <= _GOAL for difference in differences.values())
        print(
            f"{form}: " + ", ".join(f"{name} {value:+.2%}" for name, value in differences.items()), "met" if met else ""
        )
    if options.out is not None:
        facts = {"environment": environment(), "pictures": [len(training), len(kept)], "results": results}
        options.out.write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")


def _pixels(file: Path, side: int) -> Tensor:
    """[3 H W] in -1 .. 1, on white."""
    with Image.open(file) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    levels = torch.frombuffer(bytearray(flat.tobytes()), dtype=torch.uint8).view(side, side, 3)
    return levels.permute(2, 0, 1).float() / 127.5 - 1


if __name__ == "__main__":
    main()
