"""Whole short runs with each method of the objective and of the optimisers: same bytes after every stop."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.assemble import assemble
from trainer.batch import Geometry
from trainer.beginning import run_folder_of
from trainer.core.events import read_events
from trainer.core.progress import Silence
from trainer.core.tensors import read_tensors
from trainer.loop.checkpoints import Checkpoints
from trainer.loop.train import train
from trainer.recipe.recipe import Recipe

METHODS: dict[str, dict[str, Any]] = {
    "ema": {"ema": {"decay": 0.9, "every": 2}},
    "schedule-free": {"optimizer": {"kind": "adamw_schedule_free", "rate": 0.01}, "rate": {"kind": "constant"}},
    "prodigy": {"optimizer": {"kind": "prodigy", "d0": 1e-4}},
    "adafactor": {"optimizer": {"kind": "adafactor", "rate": 0.01}},
    "lion_8bit": {"optimizer": {"kind": "lion_8bit", "rate": 0.001}},
    "objective": {
        "objective": {
            "timesteps": {"kind": "mode", "spread": 4},
            "noise": {"kind": "offset", "random_strength": True},
            "perturbation": 0.1,
            "weighting": {"kind": "soft_min_snr"},
            "distance": {"kind": "huber", "schedule": "snr"},
        },
        "rate": {"kind": "warmup_stable_decay"},
    },
}


def finish(recipe: Recipe, *, resume: bool = False) -> Path:
    run = assemble(recipe, resume=resume, progress=Silence())
    with run.trackers:
        return train(run)


def stopped(recipe: Recipe, step: int, runs: Path) -> Recipe:
    """The recipe of a run that was killed after `step` steps."""
    whole = run_folder_of(recipe).root
    copy = runs / recipe.name
    shutil.copytree(whole, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (copy / f"{recipe.name}.safetensors").unlink()
    return recipe.model_copy(update={"runs": runs})


def losses(recipe: Recipe) -> list[float]:
    events = read_events(run_folder_of(recipe).events)
    return [event["loss"] for event in events if event["kind"] == "step"]


def preserving(pictures: Path, tmp_path: Path, target: str) -> dict[str, Any]:
    source: dict[str, Any] = {"kind": "folder", "path": str(pictures)}
    return {
        "sources": [source, source | {"regularisation": True, "target": target}],
        "captions": {"trigger": "zwx"},
        "resolution": 16,
        "cache": {"folder": str(tmp_path / "cache")},
    }


@pytest.mark.parametrize("method", METHODS)
def test_each_method_resumes_to_the_same_bytes(recipe_of: Callable[..., Recipe], tmp_path: Path, method: str) -> None:
    recipe = recipe_of(name=method, steps=4, **METHODS[method])
    whole = finish(recipe).read_bytes()
    assert finish(stopped(recipe, 1, tmp_path / "stopped"), resume=True).read_bytes() == whole


def test_of_prodigy_the_rate_is_told_that_it_has_found(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(steps=2, optimizer={"kind": "prodigy"}, rate={"kind": "constant"})
    finish(recipe)
    folder = run_folder_of(recipe)
    told = [event["rate"] for event in read_events(folder.events) if event["kind"] == "step"]
    for step, rate in enumerate(told, start=1):
        facts = Checkpoints(folder, recipe.checkpoints).at(step).optimizer_facts
        (group,) = facts["groups"]["list"]
        assert rate == pytest.approx(dict(group["dict"])["d"])
    assert max(told) < 0.1  # the factor itself is 1


@pytest.mark.parametrize("method", ["ema", "schedule-free"])
@pytest.mark.slow
def test_previews_of_averages_leave_no_trace(recipe_of: Callable[..., Recipe], method: str) -> None:
    changes = METHODS[method] | {"steps": 3}
    previews = {"every": 1, "prompts": ["thing, red ball"], "draw": {"steps": 1}, "size": 16}
    plain = recipe_of(name=method, **changes)
    busy = recipe_of(name=method, **changes, previews=previews).model_copy(update={"runs": plain.runs / "busy"})
    assert finish(plain).read_bytes() == finish(busy).read_bytes()
    for step in (1, 3):
        ours, theirs = (run_folder_of(one).checkpoint(step) for one in (plain, busy))
        for file in sorted(ours.glob("*.safetensors")):
            assert file.read_bytes() == (theirs / file.name).read_bytes()


@pytest.mark.parametrize("method", ["ema", "schedule-free"])
def test_the_file_holds_the_averages_and_the_checkpoint_what_is_trained(
    recipe_of: Callable[..., Recipe], method: str
) -> None:
    changes = METHODS[method] | {"steps": 4}
    recipe = recipe_of(name=method, **changes)
    written = read_tensors(finish(recipe))
    assemble_again = assemble(recipe, resume=True, progress=Silence())
    with assemble_again.trackers, assemble_again.drawn():
        averaged = {name: tensor.clone() for name, tensor in assemble_again.trainable.state().items()}
    trained = assemble_again.trainable.state()
    sizes = sorted(round(tensor.float().norm().item(), 2) for tensor in written.values() if tensor.dim() > 1)
    assert sizes == sorted(round(tensor.norm().item(), 2) for tensor in averaged.values())
    assert sizes != sorted(round(tensor.norm().item(), 2) for tensor in trained.values())


def test_the_base_models_answers_cost_nothing_at_first_and_hold_it_back(
    recipe_of: Callable[..., Recipe], pictures: Path, tmp_path: Path
) -> None:
    """Where all targets are the base's own answers, nothing is to be learned, and nothing is learned."""
    data = preserving(pictures, tmp_path, "base")
    data["sources"] = data["sources"][1:]
    recipe = recipe_of(name="still", steps=3, adapter={"kind": "lora", "rank": 4}, data=data)
    up = [tensor for name, tensor in read_tensors(finish(recipe)).items() if "lora_up" in name]
    assert losses(recipe) == [0, 0, 0]
    assert up
    assert all(torch.count_nonzero(tensor) == 0 for tensor in up)


def test_a_run_that_keeps_the_base_goes_on_exactly(
    recipe_of: Callable[..., Recipe], pictures: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(name="kept", steps=4, data=preserving(pictures, tmp_path, "base"))
    whole = finish(recipe).read_bytes()
    assert finish(stopped(recipe, 2, tmp_path / "stopped"), resume=True).read_bytes() == whole
    as_pictures = recipe_of(name="pictures", steps=4, data=preserving(pictures, tmp_path, "picture"))
    finish(as_pictures)
    assert losses(as_pictures) != losses(recipe)


def test_the_base_is_asked_with_silent_text_encoders_too(
    recipe_of: Callable[..., Recipe], pictures: Path, tmp_path: Path
) -> None:
    data = preserving(pictures, tmp_path, "base")
    data["sources"] = data["sources"][1:]
    adapter = {"kind": "lora", "rank": 4, "layers": ["attention", "te1"]}
    recipe = recipe_of(name="words", steps=2, adapter=adapter, data=data)
    finish(recipe)
    assert losses(recipe) == [0, 0]


def test_the_base_models_answers_keep_it_where_it_was(
    recipe_of: Callable[..., Recipe], pictures: Path, tmp_path: Path
) -> None:
    """Without the trigger, a model that was held to its own answers has moved less than one that was not."""
    drifts: list[float] = []
    data = preserving(pictures, tmp_path, "base")
    for name, sources in (("free", data["sources"][:1]), ("held", data["sources"])):
        recipe = recipe_of(name=name, steps=24, accumulate=1, batch=4, data=data | {"sources": sources})
        run = assemble(recipe, resume=False, progress=Silence())
        with run.trackers:
            train(run)
        noisy = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        t = torch.arange(8) * 120
        words = run.model.encode_words(["thing, red ball, tag 0"] * 8)
        geometry = Geometry.whole(8, 16, 16, torch.device("cpu"))
        with torch.no_grad():
            trained = run.model.predict(noisy, t, words, geometry)
            with run.trainable.silenced():
                drifts.append((trained - run.model.predict(noisy, t, words, geometry)).square().mean().item())
    assert 0 < drifts[1] < 0.8 * drifts[0], drifts
