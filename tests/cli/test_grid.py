"""trainer grid of a run: checkpoints, strengths, prompts, the base and training pictures."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.cli.main import run
from trainer.drawing import checkpoints, opening
from trainer.families.model import DiffusionModel
from trainer.recipe.recipe import Recipe


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("trainer.drawing.opening.pick_device", lambda: torch.device("cpu"))


@pytest.fixture
def trained(recipe_file: Callable[..., Path], tmp_path: Path) -> Path:
    """A run of two steps with a checkpoint after each, averaged."""
    assert run(["train", str(recipe_file(checkpoints={"every": 1, "keep": 5}, ema={"decay": 0.5}))]) == 0
    return tmp_path / "runs" / "tried"


def test_a_run_is_drawn_along_its_checkpoints(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["grid", str(trained), "-a", "step", "-a", "prompt", "-a", "strength=0.5,1", "--steps", "2"]) == 0
    told = capsys.readouterr().out
    assert "5 pictures drawn, 0 were there already." in told  # two checkpoints at two strengths, and the base
    folder = trained / "grids"
    names = {path.name for path in folder.iterdir()}
    assert names == {"cells", "step-prompt-strength-1.png", "step-prompt-strength-2.png", "step-prompt-strength.html"}
    page = (folder / "step-prompt-strength.html").read_text(encoding="utf-8")
    assert page.count("without adapter") >= 2
    assert "training pictures" in page
    assert "<h2>strength 0.5</h2>" in page
    assert str(trained.parent) not in page
    cells = sorted((folder / "cells").iterdir())
    assert len(cells) == 5
    told_by_files = []
    for path in cells:
        with Image.open(path) as file:
            told_by_files.append(str(file.info["parameters"]))
    assert any("Adapter: tried-000002 at 0.5" in text for text in told_by_files)
    assert run(["grid", str(trained), "-a", "step", "-a", "prompt", "-a", "strength=0.5,1", "--steps", "2"]) == 0
    assert "0 pictures drawn, 5 were there already." in capsys.readouterr().out


def test_the_last_checkpoint_is_drawn_as_the_result(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run averages its weights, so what the checkpoint shows must be the averages."""
    for words in (["-a", "step=last", "-a", "prompt"], ["-a", "strength=1", "-a", "prompt"]):
        assert run(["grid", str(trained), *words, "--steps", "2", "--no-without-adapter", "--no-references"]) == 0
    pictures = []
    for path in sorted((trained / "grids" / "cells").iterdir()):
        with Image.open(path) as file:
            pictures.append(file.convert("RGB").tobytes())
    assert len(pictures) == 2
    assert max(abs(a - b) for a, b in zip(*pictures, strict=True)) <= 1


def test_a_step_whose_checkpoint_is_gone_is_drawn_with_its_adapter(
    trained: Path, recipe_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of many steps only the small files are kept; they show what the checkpoints would, but for their rounding."""
    said = {"every": 1, "keep": 1}
    assert run(["train", str(recipe_file(name="few", checkpoints=said, ema={"decay": 0.5}))]) == 0
    few = tmp_path / "runs" / "few"
    assert [path.name for path in (few / "checkpoints").iterdir()] == ["step-000002"]
    cells: dict[Path, dict[str, bytes]] = {}
    for folder in (trained, few):
        capsys.readouterr()
        assert run(["grid", str(folder), "-a", "step", "-a", "prompt", "--steps", "2", "--no-references"]) == 0
        assert "3 pictures drawn" in capsys.readouterr().out  # two steps, and the base once
        cells[folder] = {}
        for path in (folder / "grids" / "cells").iterdir():
            with Image.open(path) as file:
                said_of = str(file.info["parameters"])
                step = next((step for step in ("000001", "000002") if f"-{step}" in said_of), "base")
                cells[folder][step] = file.convert("RGB").tobytes()
    assert {*cells[few]} == {"000001", "000002", "base"}
    for step, picture in cells[few].items():
        assert max(abs(a - b) for a, b in zip(picture, cells[trained][step], strict=True)) <= 2
    assert cells[few]["000001"] != cells[few]["000002"] != cells[few]["base"]


def test_one_model_at_a_time_is_in_memory(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter file of a step comes with a model of its own: the one before it has gone by then."""
    assert run(["train", str(recipe_file(steps=3, checkpoints={"every": 1, "keep": 1}))]) == 0
    networks: list[weakref.ref[Any]] = []
    load = opening.base_of

    def watched(recipe: Recipe) -> DiffusionModel:
        gc.collect()
        assert not [network for network in networks if network() is not None]
        model = load(recipe)
        networks.append(weakref.ref(model.denoiser))
        return model

    for module in (opening, checkpoints):
        monkeypatch.setattr(module, "base_of", watched)
    assert run(["grid", str(tmp_path / "runs" / "tried"), "-a", "step", "-a", "prompt", "--steps", "2"]) == 0
    assert len(networks) == 3


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["-a", "step=7", "-a", "prompt"], "Nothing was kept of step 7"),
        (["-a", "prompt"], "two or three different axes"),
        (["-a", "colour", "-a", "prompt"], "no axis"),
    ],
)
def test_mistakes_cost_nothing(trained: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str) -> None:
    assert run(["grid", str(trained), *words]) == 2
    assert what in capsys.readouterr().err
    assert not (trained / "grids").exists()


def test_help_is_quick_and_shows_the_axes() -> None:
    code = (
        "import sys; from trainer.cli.main import run; assert run(['grid', '--help']) == 0;"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "--axis" in told
    assert "step=100,200,last" in told
