"""Twenty steps of a small model, loss by loss: a change that should not move numbers shows them unmoved.

`python tests/golden/test_losses.py` is no way to write new ones: a change that should move them says so in
docs/lab-book.md, and replaces the numbers below by those of the failure message.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from trainer.assemble import assemble, run_folder_of
from trainer.core.events import read_events
from trainer.core.progress import Silence
from trainer.loop.train import train
from trainer.recipe.reading import read_recipe

LOSSES: dict[str, list[float]] = {}


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
        "adapter": {"rank": 4, "layers": ["attention", "convolution"]},
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
    assert losses == pytest.approx(LOSSES[weighting["kind"]], rel=2e-3), losses
