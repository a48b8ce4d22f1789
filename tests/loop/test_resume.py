"""A run stopped at any step and resumed gives the same bytes as an unbroken one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.assemble import assemble
from trainer.beginning import check_beginning, is_finished, run_folder_of
from trainer.core.errors import CheckpointError
from trainer.core.progress import Silence
from trainer.core.run_folder import RunFolder
from trainer.loop.train import train
from trainer.recipe.recipe import Recipe

QUIET = Silence()


def finish(recipe: Recipe, *, resume: bool = False) -> Path:
    run = assemble(recipe, resume=resume, progress=QUIET)
    with run.trackers:
        return train(run)


def stop_after(folder: Path, step: int, copy: Path) -> None:
    """Make `copy` what the run folder was when the run was killed after `step` steps."""
    shutil.copytree(folder, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (copy / f"{folder.name}.safetensors").unlink()


def test_every_stop_resumes_to_the_same_bytes(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of()
    whole = finish(recipe).read_bytes()
    folder = run_folder_of(recipe).root
    for step in range(recipe.steps):
        runs = tmp_path / f"stopped-{step}"
        stop_after(folder, step, runs / recipe.name)
        resumed = recipe.model_copy(update={"runs": runs})
        assert finish(resumed, resume=True).read_bytes() == whole, f"stopped after step {step}"


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_two_runs_of_one_recipe_are_equal(recipe_of: Callable[..., Recipe], optimizer: str) -> None:
    changes = {"optimizer": {"kind": optimizer, "rate": 0.01}, "steps": 3}
    first = finish(recipe_of(**changes))
    second = finish(recipe_of(**changes).model_copy(update={"runs": first.parent.parent / "again"}))
    assert first.read_bytes() == second.read_bytes()


def test_side_work_does_not_change_the_run(recipe_of: Callable[..., Recipe]) -> None:
    """Drawing and saving in the middle touch no chance that training uses."""
    changes = {"steps": 3, "checkpoints": {"every": 0}}
    plain = finish(recipe_of(**changes)).read_bytes()
    previews = {
        "every": 1,
        "prompts": ["thing, red ball"],
        "draw": {"steps": 2},
        "size": 16,
        "sampler": {"kind": "euler_a"},
    }
    busy = recipe_of(**changes, previews=previews).model_copy(update={"runs": Path(recipe_of().runs) / "busy"})
    assert finish(busy).read_bytes() == plain
    folder = run_folder_of(busy)
    assert (folder.previews(0) / "00.png").is_file()
    assert (folder.previews(3) / "grid.png").is_file()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    recipe_of: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(steps=4)
    whole = finish(recipe).read_bytes()
    folder = run_folder_of(recipe)
    folder.result.unlink()
    for step, name in ((4, "trained.safetensors"), (3, "optimizer.safetensors")):
        file = folder.checkpoint(step) / name
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    with caplog.at_level("WARNING", logger="trainer"):
        assert finish(recipe, resume=True).read_bytes() == whole
    assert "step-000004" in caplog.text
    assert "step-000003" in caplog.text
    assert "optimizer.safetensors does not match" in caplog.text


def test_a_begun_run_is_not_started_again(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(steps=2)
    finish(recipe)
    assert is_finished(recipe)
    before = run_folder_of(recipe).result.read_bytes()
    with pytest.raises(CheckpointError, match="has begun already"):
        assemble(recipe, resume=False, progress=QUIET)
    assert run_folder_of(recipe).result.read_bytes() == before


REFUSED: dict[str, dict[str, Any]] = {
    "seed": {"seed": 5},
    "batch": {"batch": 1},
    "accumulate": {"accumulate": 1},
    "adapter.rank": {"adapter": {"kind": "lora", "rank": 8, "dropout": 0.1, "layers": ["attention", "convolution"]}},
    "optimizer.rate": {"optimizer": {"kind": "adamw_8bit", "rate": 2.0e-2}},
    "rate.warmup": {"rate": {"kind": "cosine", "warmup": 4}},
    "precision": {"precision": "bfloat16"},
    "ema": {"ema": {"decay": 0.9}},
    "gradient_checkpointing": {"gradient_checkpointing": "half"},
}
ALLOWED: dict[str, dict[str, Any]] = {
    "steps": {"steps": 9},
    "previews.every": {"previews": {"every": 7}},
    "checkpoints.keep": {"checkpoints": {"every": 1, "keep": 3}},
    "export.precision": {"export": {"precision": "bfloat16"}},
    "data.cache.folder": {},
}


def begun(recipe: Recipe) -> RunFolder:
    """The folder of a run that has begun and was stopped before its first step."""
    assemble(recipe, resume=False, progress=QUIET)
    return run_folder_of(recipe)


def test_each_change_is_refused_or_allowed_by_list_and_told(
    recipe_of: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of()
    folder = begun(recipe)
    for key, changes in REFUSED.items():
        with pytest.raises(CheckpointError, match=rf"changed since this run began: {key}") as caught:
            check_beginning(recipe_of(**changes), folder, resume=True)
        assert f"{key.split('.')[0]}" in str(caught.value.mend)
        assert " was " in str(caught.value.mend)
    for key, changes in ALLOWED.items():
        changed = recipe_of(**changes)
        if key == "data.cache.folder":
            cache = changed.data.cache.model_copy(update={"folder": tmp_path / "elsewhere"})
            changed = changed.model_copy(update={"data": changed.data.model_copy(update={"cache": cache})})
        caplog.clear()
        with caplog.at_level("INFO", logger="trainer"):
            check_beginning(changed, folder, resume=True)
        assert f"{key} was " in caplog.text
    caplog.clear()
    check_beginning(recipe, folder, resume=True)
    assert caplog.text == ""


def test_a_changed_recipe_is_refused_and_more_steps_are_not(recipe_of: Callable[..., Recipe]) -> None:
    finish(recipe_of(steps=2, rate={"kind": "constant"}))
    with pytest.raises(CheckpointError, match="batch, seed"):
        assemble(recipe_of(steps=2, rate={"kind": "constant"}, batch=1, seed=5), resume=True, progress=QUIET)
    longer = recipe_of(steps=4, rate={"kind": "constant"})
    assert not is_finished(longer)
    extended = finish(longer, resume=True).read_bytes()
    straight = recipe_of(steps=4, rate={"kind": "constant"}).model_copy(update={"runs": Path(longer.runs) / "straight"})
    assert finish(straight).read_bytes() == extended
