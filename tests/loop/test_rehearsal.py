"""The rehearsal before the first step leaves no trace, takes the largest batch, and says when memory is out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from PIL import Image

from trainer.assemble import assemble
from trainer.core.errors import MemoryPlanError
from trainer.core.events import read_events
from trainer.core.progress import phases
from trainer.core.tensors import read_tensors
from trainer.loop import train as loop
from trainer.loop.rehearsal import rehearse
from trainer.loop.run import Run
from trainer.recipe.recipe import Recipe


@pytest.fixture
def assembled() -> Iterator[Callable[[Recipe], Run]]:
    """Puts runs together; they are closed at the end."""
    with ExitStack() as after:

        def put_together(recipe: Recipe) -> Run:
            with phases(quiet=True) as progress:
                run = assemble(recipe, resume=False, progress=progress)
            after.enter_context(run.trackers)
            return run

        yield put_together


def trained(run: Run) -> tuple[dict[str, torch.Tensor], list[float]]:
    loop.train(run)
    losses = [event["loss"] for event in read_events(run.folder.events) if event["kind"] == "step"]
    newest = max(run.folder.checkpoints.glob("step-*"))
    return {**read_tensors(newest / "trained.safetensors"), **read_tensors(newest / "optimizer.safetensors")}, losses


@pytest.mark.parametrize("adapter", [{"kind": "lora", "rank": 4, "dropout": 0.1}, {"kind": "full"}])
def test_a_run_is_the_same_to_the_last_bit(
    adapter: dict[str, object], recipe_of: Callable[..., Recipe], assembled: Callable[[Recipe], Run]
) -> None:
    common = {
        "adapter": adapter,
        "steps": 3,
        "accumulate": 1,
        "export": {"layout": "folder"} if adapter["kind"] == "full" else {},
    }
    with_it, losses = trained(assembled(recipe_of("with", **common)))
    with patch.object(loop, "rehearse"):
        without, losses_without = trained(assembled(recipe_of("without", **common)))
    assert losses == losses_without
    assert with_it.keys() == without.keys()
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_it.items())


def test_nothing_is_left_behind(recipe_of: Callable[..., Recipe], assembled: Callable[[Recipe], Run]) -> None:
    run = assembled(recipe_of("traces"))
    weights = [parameter.detach().clone() for parameter in run.trainable.parameters()]
    chance = torch.get_rng_state()
    rehearse(run, loop.one_pass)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(own, old) for own, old in zip(run.trainable.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in run.trainable.parameters())
    assert not run.state().optimizer
    assert run.clock.step == 0


def test_the_largest_batch_is_taken(
    recipe_of: Callable[..., Recipe], assembled: Callable[[Recipe], Run], pictures: Path
) -> None:
    Image.new("RGB", (64, 16)).save(pictures / "wide.png")  # one alone in a bucket, which no whole batch fills
    (pictures / "wide.txt").write_text("thing")
    data = recipe_of().data.model_dump(mode="json") | {"resolution": 32, "buckets": {"step": 16}}
    run = assembled(recipe_of("largest", batch=3, data=data))
    numbers = range(run.batches.batches_per_epoch)
    sizes = [run.batches.numbered(number).latents.numel() for number in numbers]
    assert len(set(sizes)) > 1
    assert sizes[run.batches.largest] == max(sizes)


def test_memory_that_runs_out_is_told_in_time(
    recipe_of: Callable[..., Recipe], assembled: Callable[[Recipe], Run]
) -> None:
    run = assembled(recipe_of("full"))
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with (
        patch.object(run.model, "predict", side_effect=full),
        pytest.raises(MemoryPlanError, match="largest batch") as told,
    ):
        loop.train(run)
    assert told.value.exit_code == 4
    assert not any(event["kind"] == "step" for event in read_events(run.folder.events))


def test_other_errors_stay_what_they_are(recipe_of: Callable[..., Recipe], assembled: Callable[[Recipe], Run]) -> None:
    run = assembled(recipe_of("broken"))
    with (
        patch.object(run.model, "predict", side_effect=RuntimeError("shapes")),
        pytest.raises(RuntimeError, match="shapes"),
    ):
        loop.train(run)
