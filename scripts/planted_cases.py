"""Trains runs with planted faults on the bundled base, and looks whether `trainer evaluate` names each fault.

usage: python scripts/planted_cases.py FOLDER [--cases over,under,...] [--train-only] [--seed 0] [--pictures 2]

Every case is a LoRA on pictures of `datasets/blob`; what is planted stands in `CASES`. A run that is finished in FOLDER
is not trained again. Prints, for each case, whether the fault was found, and the words in which; and which faults were
said of runs that do not have them.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
BLOB, ORDINARY = ROOT / "datasets" / "blob", ROOT / "datasets" / "ordinary"
KEPT_BACK = 14  # pictures that no case trains on
PROMPTS = ["blobby, winking face", "blobby, crying face", "blobby, angry face", "blobby, face with sunglasses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run with a fault, or with none."""

    plant: Callable[[list[Path], Path, int], None]  # (pictures, folder to fill, which of many ways)
    steps: int
    rate: float
    expected: tuple[str, ...]  # kinds of findings that must be there
    allowed: tuple[str, ...] = ()  # others that are true of it besides
    adapter: Mapping[str, Any] = field(default_factory=dict[str, Any])


def few(pictures: list[Path], folder: Path, way: int) -> None:
    """Six pictures."""
    _copy(pictures[way % 4 :: len(pictures) // 6][:6], folder)


def all_of_them(pictures: list[Path], folder: Path, way: int) -> None:
    """Every picture as it is."""
    _copy(pictures, folder)


def wrong_captions(pictures: list[Path], folder: Path, way: int) -> None:
    """Ten pictures bear the words of something else."""
    _copy(pictures, folder)
    words = sorted(ORDINARY.glob("*.txt"))
    for place, path in enumerate(pictures[(3 + way) % 6 :: 6][:10]):
        other = words[(17 * place + 5 + 41 * way) % len(words)].read_text(encoding="utf-8").strip()
        (folder / f"{path.stem}.txt").write_text(f"blobby, {other}\n", encoding="utf-8")
    print(f"  planted: {', '.join(path.name for path in pictures[(3 + way) % 6 :: 6][:10])}")


def copies(pictures: list[Path], folder: Path, way: int) -> None:
    """Two of forty pictures are there eight times, saved again in another way."""
    _copy(pictures[:40], folder)
    for path in (pictures[(7 + way) % 40], pictures[(23 + 5 * way) % 40]):
        with Image.open(path) as file:
            picture = file.convert("RGBA")
        for number in range(7):
            smaller = picture.width - 2 * (number + 1)
            name = f"{path.stem}-again-{number}"
            picture.resize((smaller, smaller), Image.Resampling.LANCZOS).save(folder / f"{name}.png")
            shutil.copy(path.with_suffix(".txt"), folder / f"{name}.txt")


CASES: Mapping[str, Case] = {
    "over": Case(plant=few, steps=240, rate=4e-3, expected=("over-trained",)),
    "under": Case(plant=all_of_them, steps=12, rate=2e-4, expected=("under-trained",)),
    "captions": Case(plant=wrong_captions, steps=160, rate=2e-3, expected=("bad-captions",)),
    "copies": Case(plant=copies, steps=160, rate=2e-3, expected=("copies",)),
    "sound": Case(plant=all_of_them, steps=160, rate=2e-3, expected=()),
}


def main() -> None:
    """Plant, train, evaluate and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the runs, and which pictures are chosen")
    parser.add_argument("--pictures", type=int, default=2, help="a prompt")
    arguments = parser.parse_args()
    names = arguments.cases.split(",")
    found = 0
    for name in names:
        run = trained(name, arguments.folder, arguments.seed)
        if not arguments.train_only:
            found += is_found(name, run, arguments.pictures)
    if not arguments.train_only:
        print(f"{found} of {len(names)} as expected")


def trained(name: str, folder: Path, seed: int) -> Path:
    """The finished run of a case."""
    case, title = CASES[name], name if seed == 0 else f"{name}-{seed}"
    planted, kept = folder / "data" / title, folder / "data" / "kept-back"
    pictures = sorted(BLOB.glob("*.png"))
    back = pictures[2 :: len(pictures) // KEPT_BACK][:KEPT_BACK]
    if not planted.is_dir():
        case.plant([path for path in pictures if path not in back], planted, seed)
    if not kept.is_dir():
        _copy(back, kept)
    recipe = folder / f"{title}.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(case, title, folder, (planted, kept), seed)), encoding="utf-8")
    began = time.perf_counter()
    _trainer(["train", str(recipe), "--resume", "auto"])
    print(f"{title}: trained in {time.perf_counter() - began:.0f} s", flush=True)
    return folder / "runs" / title


def is_found(name: str, run: Path, seeds: int) -> bool:
    """Evaluate a run and tell what was found; whether that is what was planted, and nothing else."""
    began = time.perf_counter()
    _trainer(["evaluate", str(run), "--seeds", str(seeds), "--strengths", ""])
    seconds = time.perf_counter() - began
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    findings, expected = evaluation["runs"][0]["findings"], CASES[name].expected
    kinds = {one["kind"] for one in findings if one["level"] == "warning"}
    said = kinds & {kind for case in CASES.values() for kind in case.expected}
    right = set(expected) <= said <= {*expected, *CASES[name].allowed}
    print(f"{name}: {'as expected' if right else 'NOT AS EXPECTED'}, evaluated in {seconds:.0f} s")
    for one in findings:
        mark = " " if one["level"] == "note" else "+" if one["kind"] in expected else "!"
        print(f"  {mark} {one['kind']}: {one['what']}")
    return right


def _recipe(case: Case, name: str, folder: Path, sources: tuple[Path, Path], seed: int) -> Mapping[str, Any]:
    planted, kept = sources
    return {
        "name": name,
        "model": {"kind": "sd1", "weights": "bundled"},
        "precision": "float32",
        "data": {
            "sources": [
                {"kind": "folder", "path": str(planted)},
                {"kind": "folder", "path": str(kept), "held_out": True},
            ],
            "captions": {"trigger": "blobby", "dropout": 0.1},
            "resolution": 64,
            "cache": {"folder": str(folder / "cache")},
        },
        "adapter": {"kind": "lora", "rank": 16, "alpha": 16, "layers": ["attention", "convolution"], **case.adapter},
        "optimizer": {"kind": "adamw", "rate": case.rate},
        "rate": {"kind": "constant", "warmup": 5},
        "batch": 4,
        "steps": case.steps,
        "gradient_checkpointing": False,
        "seed": seed,
        "previews": {"every": 0, "prompts": PROMPTS, "draw": {"steps": 12}},
        "checkpoints": {"every": case.steps // 4, "keep": 10},
        "runs": str(folder / "runs"),
    }


def _copy(pictures: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in pictures:
        shutil.copy(path, folder)
        shutil.copy(path.with_suffix(".txt"), folder)


def _trainer(words: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "trainer", *words], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
