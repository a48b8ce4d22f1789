"""Every form of adapter resumes to the same bytes: its chance, its origins, its lengths."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.assemble import assemble
from trainer.beginning import run_folder_of
from trainer.core.progress import Silence
from trainer.loop.train import train
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe

FORMS: dict[str, dict[str, Any]] = {
    "dora": {"decompose": "inputs", "dropout": 0.1, "rank_dropout": 0.3, "module_dropout": 0.3, "max_norm": 0.1},
    "pissa": {"initial": "principal", "module_dropout": 0.3, "layers": ["attention", "te1"]},
    "loha": {"kind": "loha", "rank_dropout": 0.3, "module_dropout": 0.3, "max_norm": 0.1},
    "lokr": {"kind": "lokr", "rank": 1, "rank_dropout": 0.3, "module_dropout": 0.3},
}


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("form", FORMS)
def test_a_stop_resumes_to_the_same_bytes(small_model: Path, pictures: Path, tmp_path: Path, form: str) -> None:
    content = {
        "name": "short",
        "model": {"kind": "sd1", "weights": str(small_model)},
        "precision": "bfloat16" if form == "dora" else "float32",
        "data": {
            "sources": [{"kind": "folder", "path": str(pictures)}],
            "resolution": 16,
            "cache": {"folder": str(tmp_path / "cache")},
        },
        "adapter": {"kind": "lora", "rank": 2, "layers": ["attention", "convolution"], **FORMS[form]},
        "optimizer": {"kind": "adamw", "rate": 1.0e-2},
        "batch": 2,
        "steps": 3,
        "checkpoints": {"every": 1, "keep": 100},
        "runs": str(tmp_path / "runs"),
    }
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = read_recipe(path)
    whole = finish(recipe).read_bytes()
    folder = run_folder_of(recipe)
    shutil.rmtree(folder.checkpoint(2))
    shutil.rmtree(folder.checkpoint(3))
    folder.result.unlink()
    assert finish(recipe, resume=True).read_bytes() == whole


def finish(recipe: Recipe, *, resume: bool = False) -> Path:
    from accelerate.state import AcceleratorState

    try:
        run = assemble(recipe, resume=resume, progress=Silence())
        with run.trackers:
            return train(run)
    finally:  # accelerate keeps one state a process; a test begins without that of the one before
        AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage] - as its own tests
