"""Passes that are compiled or recorded are the passes that are written."""

import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.assemble import assemble
from trainer.core.errors import RecipeError
from trainer.core.progress import Silence
from trainer.loop.ahead import Ready
from trainer.loop.compiling import Blocks, chosen_mode
from trainer.loop.graphs import Graphs
from trainer.loop.passing import Passing, Plain, signature_of
from trainer.loop.run import Run
from trainer.loop.train import one_pass
from trainer.recipe.recipe import Recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def begin(recipe: Recipe) -> Run:
    return assemble(recipe, resume=False, progress=Silence())


def play_again(deed: Callable[[], None]) -> Callable[[], None]:
    """Stands in for a CUDA graph: what is played works on the same memory as what was recorded."""
    deed()
    return deed


def test_what_cannot_be_recorded_is_said_before_anything_is_loaded(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(compile="graph")
    with pytest.raises(RecipeError, match="CUDA alone, and not with the device cpu") as caught:
        begin(recipe)
    assert caught.value.where == "compile"
    assert not recipe.data.cache.folder.exists()


def test_auto_takes_what_has_been_measured() -> None:
    assert chosen_mode("auto", CPU, []) == "off"
    assert chosen_mode("auto", CUDA, []) == "off"
    assert chosen_mode("graph", CUDA, []) == "graph"
    assert chosen_mode("off", CUDA, []) == "off"


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses_and_gradients(recipe_of: Callable[..., Recipe]) -> None:
    run = begin(recipe_of(accumulate=1, adapter={"kind": "lora", "rank": 4}, gradient_checkpointing=False))
    ready = run.ahead.take(0)
    parameters = list(run.trainable.parameters())

    loss, gradients = passed(Plain(), run, ready, parameters)
    # traced and differentiated ahead as always, but run by torch itself: to make code takes minutes
    blocks = Blocks(run.model.denoiser, backend="aot_eager")
    compiled, others = passed(blocks, run, ready, parameters)
    torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=1e-6)
    assert any(gradient.any() for gradient in gradients)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)
    names = [name for name, _ in run.model.denoiser.named_parameters()]
    assert not any("_orig_mod" in name for name in names)  # names in checkpoints and files stay
    with blocks.resting():
        torch.testing.assert_close(passed(Plain(), run, ready, parameters)[0], loss)


def test_without_a_compiler_blocks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", {}.get)
    with pytest.raises(RecipeError, match=r"needs a C\+\+ compiler") as caught:
        chosen_mode("blocks", CPU, [])
    assert caught.value.where == "compile"


def test_a_record_gives_the_loss_and_the_gradients_of_each_batch(
    recipe_of: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    run = begin(recipe_of(accumulate=1))
    parameters = list(run.trainable.parameters())
    plays: list[int] = []

    def counted(deed: Callable[[], None]) -> Callable[[], None]:
        play = play_again(deed)
        return lambda: (plays.append(1), play())[1]

    graphs = Graphs(parameters, counted)
    found: set[float] = set()
    with caplog.at_level("INFO", logger="trainer"):
        for number in range(8):
            ready = run.ahead.take(number)
            (loss, gradients), (plain, expected) = (passed(way, run, ready, parameters) for way in (graphs, Plain()))
            torch.testing.assert_close(loss, plain)
            torch.testing.assert_close(gradients, expected)
            found.add(float(loss))
    assert len(found) == 8
    shapes = {signature_of(run.ahead.take(number)) for number in range(8)}
    recorded = caplog.text.count("Recorded the pass")
    assert 1 <= recorded <= len(shapes)
    assert len(plays) > recorded  # played, and not only tried
    with graphs.resting():
        pass
    assert not graphs._records  # pyright: ignore[reportPrivateUsage] - memory that nobody sees from outside


def test_gradients_of_several_passes_are_summed(recipe_of: Callable[..., Recipe]) -> None:
    run = begin(recipe_of(accumulate=1))
    parameters = list(run.trainable.parameters())
    sums: list[list[Tensor]] = []
    for way in (Graphs(parameters, play_again), Plain()):
        for number in range(6):
            ready = run.ahead.take(number)
            torch.manual_seed(ready.layers)
            way(partial(one_pass, run), ready)
        sums.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
        for parameter in parameters:
            parameter.grad = None
    torch.testing.assert_close(sums[0], sums[1])


def wrong(deed: Callable[[], None]) -> Callable[[], None]:
    deed()
    return lambda: None  # plays nothing: what was computed stays what it was


def refuses(deed: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize(("capture", "said"), [(wrong, "gradient is off"), (refuses, "not permitted when")])
def test_a_record_that_is_wrong_is_never_used(
    recipe_of: Callable[..., Recipe],
    caplog: pytest.LogCaptureFixture,
    capture: Callable[[Callable[[], None]], Callable[[], None]],
    said: str,
) -> None:
    run = begin(recipe_of(accumulate=1))
    parameters = list(run.trainable.parameters())

    def spoiled(deed: Callable[[], None]) -> Callable[[], None]:
        play = capture(deed)
        for gradient in graphs._gradients:  # pyright: ignore[reportPrivateUsage] - spoiled on purpose
            gradient.mul_(2)
        return play

    graphs = Graphs(parameters, spoiled)
    with caplog.at_level("WARNING", logger="trainer"):
        for number in range(8):
            ready = run.ahead.take(number)
            (loss, gradients), (plain, expected) = (passed(way, run, ready, parameters) for way in (graphs, Plain()))
            assert torch.equal(loss, plain)
            assert all(map(torch.equal, gradients, expected))
    assert caplog.text.count("not recorded") == 1
    assert said in caplog.text


def passed(passing: Passing, run: Run, ready: Ready, parameters: list[Parameter]) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradients of one pass."""
    torch.manual_seed(ready.layers)
    loss = passing(partial(one_pass, run), ready)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return loss, gradients
