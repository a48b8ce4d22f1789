"""A run folder as a run leaves it, without a run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.recipe.reading import write_recipe
from trainer.recipe.recipe import Recipe


@pytest.fixture
def recipe(pictures: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe of 40 steps on pictures that are there and a model that is not."""

    def make(**changes: Any) -> Recipe:
        content: dict[str, Any] = {
            "name": "tried",
            "model": {"kind": "sd1", "weights": str(tmp_path / "models" / "nowhere.safetensors")},
            "data": {
                "sources": [{"kind": "folder", "path": str(pictures)}],
                "captions": {"trigger": "thing"},
                "resolution": 16,
                "cache": {"folder": str(tmp_path / "cache")},
            },
            "adapter": {"kind": "lora", "rank": 4},
            "steps": 40,
            "runs": str(tmp_path / "runs"),
            "previews": {"every": 20, "prompts": ["thing, red ball", "thing, blue ball"]},
        }
        return Recipe.model_validate_json(json.dumps(content | changes))

    return make


@pytest.fixture
def run_folder(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder: events of `steps` steps, previews after some of them, and whatever else is said."""

    def make(
        *,
        steps: int = 40,
        done: bool = True,
        drawn: tuple[int, ...] = (0, 20, 40),
        prompts: int = 2,
        side: int = 16,
        noise: bool = False,
        **changes: Any,
    ) -> Path:
        own = recipe(**changes)
        root = tmp_path / "runs" / own.name
        root.mkdir(parents=True)
        (root / "recipe.yaml").write_text(write_recipe(own), encoding="utf-8")
        environment = {"trainer": "0.1.0", "device": "cpu", "packages": {"torch": "2.13"}}
        (root / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
        account = {"found": 10, "counts": {"accepted": 5, "captions": 5, "masks": 0, "rejected": 0, "ignored": 0}}
        (root / "data.json").write_text(json.dumps(account), encoding="utf-8")
        lines = [json.dumps(_step(step)) for step in range(1, steps + 1)]
        lines += [json.dumps(_held_out(step)) for step in (10, 20, 30)]
        if done:
            lines.append(json.dumps({"kind": "done", "step": steps, "result": f"{own.name}.safetensors"}))
            (root / f"{own.name}.safetensors").write_bytes(b"no tensors")
        (root / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for step in drawn:
            folder = root / "previews" / f"step-{step:06d}"
            folder.mkdir(parents=True)
            for place in range(prompts):
                _drawn(step, place, side, noise=noise).save(folder / f"{place:02d}.png")
        return root

    return make


def _step(step: int) -> dict[str, object]:
    loss = 0.3 + 0.2 / step + 0.05 * math.sin(step)
    return {"kind": "step", "step": step, "loss": loss, "rate": 1e-4, "seconds": 0.5, "peak_bytes": (1 << 30) + step}


def _held_out(step: int) -> dict[str, object]:
    loss = 0.5 - step / 1000
    return {"kind": "held_out", "step": step, "loss": loss, "bands": [loss - 0.1, loss + 0.1]}


def _drawn(step: int, place: int, side: int, *, noise: bool) -> Image.Image:
    colour = (step % 256, place * 20 % 256, 128)
    plain = Image.new("RGB", (side, side), colour)
    if not noise:
        return plain
    grain = Image.effect_noise((side, side), 120)
    return Image.merge("RGB", [grain, grain.rotate(90), grain.rotate(180)])


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """What `trainer evaluate` writes, by docs/evaluation.md."""
    scores = {"likeness": 0.55, "gap_closed": 0.77, "kid": 0.4, "diversity": 0.5, "adherence": None, "copied": 0.0}
    losses = {"held_out": {"loss": 0.19, "bands": [0.1]}, "train": {"loss": 0.18, "bands": [0.1]}}
    return {
        "format": 1,
        "features": {"kind": "builtin", "name": "built-in shapes", "weights": None},
        "runs": [
            {
                "name": "tried",
                "base": {"scores": {"likeness": 0.31}, "held_out": {"loss": 0.21}, "train": {"loss": 0.21}},
                "real": {"likeness": 0.62},
                "candidates": [
                    {"step": 20, "strength": 1.0, "scores": scores, "score": 0.7, "score_range": [0.6, 0.8], **losses},
                    {"step": 40, "strength": 1.0, "scores": scores, "score": 0.5, "score_range": None, **losses},
                ],
                "copies": [
                    {"picture": "evaluation/a.png", "step": 40, "seed": 7, "prompt": "thing, red ball",
                     "training": "evaluation/b.png", "name": "red.png", "distance": 0.04, "usual": 0.3}
                ],
                "training": [
                    {"key": "ab", "name": "red.png", "caption": "thing, red ball", "thumbnail": "evaluation/b.png",
                     "loss": [{"step": 0, "bands": [0.2, 0.4]}, {"step": 40, "bands": [0.1, 0.3]}], "learned": 0.33,
                     "caption_gain": 0.02, "copies": 2, "remarks": ["bad-captions"]}
                ],
                "findings": [
                    {"kind": "over-trained", "level": "warning", "what": "It was trained for too long.",
                     "mend": "Use step 20.", "names": ["red.png"], "pictures": ["evaluation/b.png"]}
                ],
                "recommendation": {"step": 20, "strength": 0.8, "file": None, "why": ["It is nearest."],
                                   "sure": "fairly sure", "wins": 0.74,
                                   "rivals": [{"step": 40, "strength": 1.0, "wins": 0.2}], "copied_to": None},
            }
        ],
    }  # fmt: skip
