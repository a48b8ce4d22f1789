"""Precision, checkpointed gradients and numbers that are not finite."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.assemble import assemble
from trainer.beginning import run_folder_of
from trainer.core.clock import Clock
from trainer.core.errors import NonFiniteError
from trainer.core.events import read_events
from trainer.core.progress import Silence
from trainer.core.tensors import read_tensors
from trainer.loop.checkpoints import Checkpoints
from trainer.loop.run import Run, bare
from trainer.loop.train import train
from trainer.recipe.recipe import Recipe


def begin(recipe: Recipe) -> Run:
    return assemble(recipe, resume=False, progress=Silence())


def finish(recipe: Recipe) -> Path:
    run = begin(recipe)
    with run.trackers:
        return train(run)


def test_checkpointed_gradients_are_the_same_gradients(recipe_of: Callable[..., Recipe]) -> None:
    changes = {"steps": 3, "optimizer": {"kind": "adamw", "rate": 0.01}}
    kept = read_tensors(finish(recipe_of("kept", gradient_checkpointing=False, **changes)))
    again = read_tensors(finish(recipe_of("again", gradient_checkpointing=True, **changes)))
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, again[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_base_of_16_bits_trains_an_adapter_of_32(recipe_of: Callable[..., Recipe], precision: str) -> None:
    run = begin(recipe_of(precision, precision=precision, steps=2))
    before = {name: tensor.clone() for name, tensor in run.trainable.state().items()}
    frozen = [p for p in run.model.denoiser.parameters() if not p.requires_grad]
    assert {parameter.dtype for parameter in frozen} == {getattr(torch, precision)}
    with run.trackers:
        result = read_tensors(train(run))
    after = run.trainable.state()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(bool(tensor.isfinite().all()) for tensor in result.values())


def spoil(run: Run, monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the network give NaN in these steps, counted from 1."""
    predict = type(run.model).predict

    def predict_or_fail(*arguments: object) -> torch.Tensor:
        predicted = predict(*arguments)  # pyright: ignore[reportArgumentType] - handed on as they came
        return predicted * float("nan") if run.clock.step + 1 in steps else predicted

    monkeypatch.setattr(type(run.model), "predict", predict_or_fail)


def test_losses_that_are_not_finite_stop_the_run_and_spoil_nothing(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(steps=6)
    run = begin(recipe)
    spoil(run, monkeypatch, 2, 4, 5, 6)
    with pytest.raises(NonFiniteError, match="steps 4 to 6") as caught, run.trackers:
        train(run)
    assert caught.value.exit_code == 5
    for number in range(3 * run.clock.accumulate, 6 * run.clock.accumulate):
        for example in run.batches.numbered(number).keys:
            assert example[:12] in str(caught.value)
    assert ".png" in str(caught.value)
    assert all(bool(parameter.isfinite().all()) for parameter in run.trainable.parameters())
    folder = run_folder_of(recipe)
    assert not folder.result.exists()
    saved = Checkpoints(folder, recipe.checkpoints).newest()
    assert saved is not None
    assert saved.step == 5
    assert all(bool(tensor.isfinite().all()) for tensor in saved.trained.values())
    assert all(bool(tensor.isfinite().all()) for tensor in saved.optimizer.values() if tensor.is_floating_point())


def test_a_step_that_is_not_finite_is_passed_over(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(steps=4)
    run = begin(recipe)
    spoil(run, monkeypatch, 2, 3)
    with run.trackers:
        result = read_tensors(train(run))
    assert all(bool(tensor.isfinite().all()) for tensor in result.values())
    assert "in step 2, so the step is passed over" in caplog.text
    assert ".png" in caplog.text
    steps = [event for event in read_events(run_folder_of(recipe).events) if event["kind"] == "step"]
    assert [event["loss"] is None for event in steps] == [False, True, True, False]


@pytest.mark.parametrize("part", ["trained", "optimizer", "ema"])
def test_a_weight_that_is_not_finite_reaches_no_file(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    recipe = recipe_of(steps=3, ema={"decay": 0.9}, optimizer={"kind": "adamw", "rate": 0.01})
    run = begin(recipe)
    assert run.ema is not None
    averages, tick, step = run.ema, type(run.clock).tick, 2

    def tick_and_spoil(clock: Clock, pictures: int) -> None:
        tick(clock, pictures)
        if clock.step != step:
            return
        if part == "ema":
            next(iter(averages.state().values())).view(-1)[0] = float("inf")
        elif part == "trained":
            next(iter(run.trainable.parameters())).data.view(-1)[0] = float("nan")
        else:
            next(iter(bare(run.optimizer).state.values()))["exp_avg"].view(-1)[0] = float("nan")

    monkeypatch.setattr(Clock, "tick", tick_and_spoil)
    with pytest.raises(NonFiniteError) as caught, run.trackers:
        train(run)
    assert caught.value.exit_code == 5
    folder = run_folder_of(recipe)
    assert not folder.result.exists()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000001"]
