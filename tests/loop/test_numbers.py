"""Precision, checkpointed gradients and numbers that are not finite."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.assemble import assemble
from trainer.beginning import run_folder_of
from trainer.core.errors import NonFiniteError
from trainer.core.progress import Silence
from trainer.core.tensors import read_tensors
from trainer.loop.checkpoints import Checkpoints
from trainer.loop.run import Run
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


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_nothing(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(steps=6)
    run = begin(recipe)
    predict = type(run.model).predict

    def predict_or_fail(*arguments: object) -> torch.Tensor:
        predicted = predict(*arguments)  # pyright: ignore[reportArgumentType] - handed on as they came
        return predicted * float("nan") if run.clock.step == 3 else predicted

    monkeypatch.setattr(type(run.model), "predict", predict_or_fail)
    with pytest.raises(NonFiniteError, match="step 4") as caught, run.trackers:
        train(run)
    assert caught.value.exit_code == 5
    for number in (3 * run.clock.accumulate, 3 * run.clock.accumulate + 1):
        for key in run.batches.numbered(number).keys:
            assert key[:12] in str(caught.value)
    assert all(bool(parameter.isfinite().all()) for parameter in run.trainable.parameters())
    folder = run_folder_of(recipe)
    assert not folder.result.exists()
    saved = Checkpoints(folder, recipe.checkpoints).newest()
    assert saved is not None
    assert saved.step == 3
    assert all(bool(tensor.isfinite().all()) for tensor in saved.trained.values())
