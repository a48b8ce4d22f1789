"""Twenty steps of a small model, loss by loss: a change that should not move numbers shows them unmoved.

A change that should move them says by how much and why in docs/lab-book.md, and replaces the numbers below by those of
the failure message.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from trainer.assemble import assemble
from trainer.beginning import run_folder_of
from trainer.core.events import read_events
from trainer.core.progress import Silence
from trainer.loop.train import train
from trainer.recipe.reading import read_recipe

LOSSES = {
    "flat": [
        0.43093,
        0.69128,
        0.48541,
        0.78759,
        0.36217,
        0.51924,
        0.37321,
        0.42593,
        0.6465,
        0.56197,
        0.8587,
        0.33854,
        0.72649,
        1.00374,
        0.27782,
        0.65016,
        0.69559,
        0.32252,
        0.80287,
        0.32152,
    ],
    "min_snr": [
        0.00505,
        0.28082,
        0.08586,
        0.47121,
        0.01982,
        0.15969,
        0.01504,
        0.06318,
        0.36002,
        0.18868,
        0.48574,
        0.02121,
        0.16088,
        0.51482,
        0.00347,
        0.35302,
        0.41361,
        0.00753,
        0.46141,
        0.02316,
    ],
}


def draw_pictures(folder: Path) -> None:
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        picture = Image.new("RGB", (16, 16), "white")
        ImageDraw.Draw(picture).rectangle((2, 2 + number, 12, 13), fill=colour)
        picture.save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"{colour} box", encoding="utf-8")


@pytest.mark.parametrize("weighting", [{"kind": "flat"}, {"kind": "min_snr", "gamma": 5.0}], ids=lambda w: w["kind"])
def test_losses_are_unmoved(small_model: Path, tmp_path: Path, weighting: dict[str, Any]) -> None:
    draw_pictures(tmp_path / "pictures")
    content = {
        "name": "golden",
        "model": {"kind": "sd1", "weights": str(small_model)},
        "precision": "float32",
        "data": {
            "sources": [{"kind": "folder", "path": str(tmp_path / "pictures")}],
            "resolution": 16,
            "cache": {"folder": str(tmp_path / "cache")},
        },
        "adapter": {"kind": "lora", "rank": 4, "layers": ["attention", "convolution"]},
        "optimizer": {"kind": "adamw", "rate": 0.02},
        "objective": {"weighting": weighting},
        "batch": 2,
        "steps": 20,
        "runs": str(tmp_path / "runs"),
        "checkpoints": {"every": 0},
    }
    path = tmp_path / "golden.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = read_recipe(path)
    run = assemble(recipe, resume=False, progress=Silence())
    with run.trackers:
        train(run)
    events = read_events(run_folder_of(recipe).events)
    losses = [round(event["loss"], 5) for event in events if event["kind"] == "step"]
    # other processors round otherwise in the last digits, and twenty steps carry that on
    assert losses == pytest.approx(LOSSES[weighting["kind"]], rel=2e-3, abs=2e-5), str(losses)
