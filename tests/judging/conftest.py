"""A finished short run on the small model, with a checkpoint, adapters on the way and pictures kept back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from trainer.assemble import assemble
from trainer.core.progress import Silence
from trainer.loop.train import train
from trainer.recipe.reading import read_recipe


@pytest.fixture(scope="session")
def balls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Fourteen pictures to train on, and three to keep back, with captions."""
    folders = tmp_path_factory.mktemp("balls"), tmp_path_factory.mktemp("kept")
    for number in range(17):
        folder = folders[number >= 14]
        picture = Image.new("RGB", (16, 16), "white")
        colour = (15 * number, 255 - 12 * number, (60 * number) % 255)
        ImageDraw.Draw(picture).ellipse((number % 5, number % 3, 9 + number % 4, 12), fill=colour)
        picture.save(folder / f"ball-{number:02d}.png")
        (folder / f"ball-{number:02d}.txt").write_text(f"thing, ball {number}", encoding="utf-8")
    return folders


@pytest.fixture(scope="session")
def run_of(
    small_model: Path, balls: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Trains a short run and gives its folder."""
    root = tmp_path_factory.mktemp("judged")

    def make(name: str = "judged", **changes: Any) -> Path:
        trained, kept = balls
        content: dict[str, Any] = {
            "name": name,
            "model": {"kind": "sd1", "weights": str(small_model)},
            "precision": "float32",
            "data": {
                "sources": [
                    {"kind": "folder", "path": str(trained)},
                    {"kind": "folder", "path": str(kept), "held_out": True},
                ],
                "captions": {"trigger": "thing"},
                "resolution": 16,
                "cache": {"folder": str(root / "cache")},
            },
            "adapter": {"kind": "lora", "rank": 4},
            "optimizer": {"kind": "adamw", "rate": 1.0e-2},
            "batch": 2,
            "steps": 6,
            "runs": str(root),
            "previews": {"every": 0, "prompts": ["thing, ball", "thing, red ball"], "draw": {"steps": 2}},
            "checkpoints": {"every": 2, "keep": 1},
            "held_out": {"every": 3},
        }
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
        run = assemble(read_recipe(path), resume=False, progress=Silence())
        run.previews.settings = run.previews.settings.model_copy(update={"prompts": ()})  # nobody looks at them here
        with run.trackers:
            train(run)
        return root / name

    return make


@pytest.fixture(scope="session")
def run_folder(run_of: Callable[..., Path]) -> Path:
    """A finished run."""
    return run_of()
