"""Eight steps of new words, of pivotal tuning and of whole models, loss by loss; see `test_losses`."""

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

WORDS: list[dict[str, Any]] = [{"word": "<box>", "vectors": 2, "start": "red"}]
FORMS: dict[str, dict[str, Any]] = {
    "words": {"adapter": {"kind": "textual_inversion", "words": WORDS}},
    "pivotal": {"adapter": {"kind": "pivotal", "words": WORDS, "lora": {"rank": 4}, "words_rate": 0.05}},
    "full": {"adapter": {"kind": "full"}, "export": {"layout": "folder"}},
    "full, bfloat16": {
        "adapter": {"kind": "full", "layers": ["unet", "te1"], "weights": "bfloat16"},
        "precision": "bfloat16",
        "export": {"layout": "folder"},
    },
}
LOSSES: dict[str, list[float]] = {
    "words": [0.43777, 0.68951, 0.49606, 0.82661, 0.35621, 0.53986, 0.4058, 0.43924],
    "pivotal": [0.43777, 0.69784, 0.49153, 0.82214, 0.35513, 0.52582, 0.43192, 0.43398],
    "full": [0.42958, 0.74475, 0.56066, 0.75837, 0.37555, 0.48504, 0.37462, 0.38084],
    "full, bfloat16": [0.42986, 0.73831, 0.54115, 0.74109, 0.38065, 0.51099, 0.35504, 0.3541],
}


@pytest.fixture(autouse=True)
def each_is_fresh(fresh_accelerate: None) -> None:
    """Precisions differ between tests."""


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_unmoved(small_model: Path, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        picture = Image.new("RGB", (16, 16), "white")
        ImageDraw.Draw(picture).rectangle((2, 2 + number, 12, 13), fill=colour)
        picture.save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"{colour} <box>", encoding="utf-8")
    content = {
        "name": "golden",
        "model": {"kind": "sd1", "weights": str(small_model)},
        "precision": "float32",
        "data": {
            "sources": [{"kind": "folder", "path": str(folder)}],
            "resolution": 16,
            "cache": {"folder": str(tmp_path / "cache")},
        },
        "optimizer": {"kind": "adamw", "rate": 0.02},
        "batch": 2,
        "steps": 8,
        "runs": str(tmp_path / "runs"),
        "checkpoints": {"every": 0},
    }
    path = tmp_path / "golden.yaml"
    path.write_text(yaml.safe_dump(content | FORMS[form]), encoding="utf-8")
    recipe = read_recipe(path)
    run = assemble(recipe, resume=False, progress=Silence())
    with run.trackers:
        train(run)
    events = read_events(run_folder_of(recipe).events)
    losses = [round(event["loss"], 5) for event in events if event["kind"] == "step"]
    # bfloat16 keeps three digits, and processors sum in other orders
    wide = "bfloat16" in form
    wanted = pytest.approx(LOSSES[form], rel=5e-2 if wide else 2e-3, abs=5e-3 if wide else 2e-5)
    assert losses == wanted, str(losses)
