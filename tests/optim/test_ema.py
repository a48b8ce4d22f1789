"""The average of the weights: its formula, its resume, and that showing it leaves no trace."""

from contextlib import nullcontext
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch.nn import Parameter

from trainer.core.errors import CheckpointError
from trainer.optim import ema as module
from trainer.optim.ema import Ema, EmaSettings


def weights(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in ((3, 4), (7,), (2, 3, 3, 3))]
    made[2].data = made[2].data.to(memory_format=torch.channels_last)
    return made


def move(parameters: list[Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def bits(parameters: list[Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(some, others, strict=True))


def shown(average: Ema, parameters: list[Parameter]) -> list[torch.Tensor]:
    with average.averaged():
        return bits(parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("warmup", ["ratio", "power", "none"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("portion", [1, 10, 1 << 20])
def test_it_is_the_running_mean_in_single_precision(
    dtype: torch.dtype,
    warmup: Literal["ratio", "power", "none"],
    every: int,
    portion: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", portion)
    parameters = weights(dtype)
    average = EmaSettings(decay=0.7, warmup=warmup, power=2.0, every=every).build(parameters)
    expected = [one.double() for one in bits(parameters)]
    updates = 0
    for step in range(1, 13):
        move(parameters, step)
        average.update(step)
        if step % every == 0:
            grown = {"ratio": (1 + updates) / (10 + updates), "power": (updates / (updates + 1)) ** 3, "none": 1.0}
            kept = min(0.7, grown[warmup])
            expected = [kept * one + (1 - kept) * new.double() for one, new in zip(expected, parameters, strict=True)]
            updates += 1
    state = average.state()
    assert {one.dtype for one in state.values()} == {torch.float32}
    for one, other in zip(state.values(), expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shown(average, parameters), [one.to(dtype) for one in state.values()], rtol=0, atol=0)


def test_the_share_kept_grows_as_its_sources_say() -> None:
    ratio, power, none = (EmaSettings(warmup=word) for word in ("ratio", "power", "none"))
    assert ratio.share_kept(0) == 0.1
    assert ratio.share_kept(90) == 0.91
    assert ratio.share_kept(10**6) == none.share_kept(0) == 0.999
    assert power.share_kept(0) == 0  # the first update takes the weights as they are
    assert power.share_kept(9) == pytest.approx(0.9**7.94)


def test_the_power_looks_back_over_the_share_of_the_run_that_is_said() -> None:
    """Karras et al. 2023, section 3.1: gamma = 6.94 has a spread of a tenth of the run."""
    settings, steps = EmaSettings(warmup="power", decay=0.99999), 2000
    share = torch.zeros(steps, dtype=torch.float64)
    for n in range(steps):
        share *= settings.share_kept(n)
        share[n] = 1 - settings.share_kept(n)
    when = torch.arange(steps) / steps
    mean = (share * when).sum()
    assert ((share * (when - mean) ** 2).sum().sqrt()).item() == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("broken", [False, True])
def test_what_the_parameters_held_comes_back_bit_for_bit(dtype: torch.dtype, broken: bool) -> None:
    parameters = weights(dtype)
    average = EmaSettings().build(parameters)
    move(parameters, 1)
    average.update(1)
    places = [parameter.data_ptr() for parameter in parameters]
    before, averages = bits(parameters), [one.clone() for one in average.state().values()]
    with pytest.raises(KeyboardInterrupt) if broken else nullcontext(), average.averaged():
        assert not same(bits(parameters), before)
        assert [parameter.data_ptr() for parameter in parameters] == places  # graphs and flat buffers look there
        if broken:
            raise KeyboardInterrupt
    assert same(bits(parameters), before)
    assert same(list(average.state().values()), averages)


def test_running_out_of_memory_halfway_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = weights()
    average = EmaSettings().build(parameters)
    move(parameters, 1)
    before, averages = bits(parameters), [one.clone() for one in average.state().values()]
    show, calls = module._show, 0  # pyright: ignore[reportPrivateUsage]

    def fails_at_the_third(parameter: Parameter, its_average: torch.Tensor) -> torch.Tensor | None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError
        return show(parameter, its_average)

    monkeypatch.setattr(module, "_show", fails_at_the_third)
    with pytest.raises(torch.OutOfMemoryError), average.averaged():
        pass
    assert same(bits(parameters), before)
    assert same(list(average.state().values()), averages)


def test_showing_it_does_not_shift_it() -> None:
    one, other = weights(), weights()
    looked_at, alone = EmaSettings().build(one), EmaSettings().build(other)
    for step in range(1, 6):
        move(one, step)
        move(other, step)
        looked_at.update(step)
        alone.update(step)
        shown(looked_at, one)
    assert same(list(looked_at.state().values()), list(alone.state().values()))
    assert same(bits(one), bits(other))


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("stop", [0, 1, 6, 9])
def test_it_goes_on_exactly(every: int, stop: int) -> None:
    settings = EmaSettings(every=every)
    whole = weights(torch.bfloat16)
    through = settings.build(whole)
    first = weights(torch.bfloat16)
    until = settings.build(first)
    for step in range(1, 11):
        move(whole, step)
        through.update(step)
        if step <= stop:
            move(first, step)
            until.update(step)
    resumed = settings.build(first)
    resumed.load_state({name: one.clone() for name, one in until.state().items()})
    for step in range(stop + 1, 11):
        move(first, step)
        resumed.update(step)
    assert same(list(resumed.state().values()), list(through.state().values()))


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "dtype", "finite"])
def test_averages_that_do_not_fit_are_refused(damage: str) -> None:
    average = EmaSettings().build(weights())
    before = [one.clone() for one in average.state().values()]
    state = {name: one + 1 for name, one in average.state().items()}
    name = next(iter(state))
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        state["stranger"] = torch.zeros(1)
    elif damage == "shape":
        state[name] = state[name][1:]
    elif damage == "dtype":
        state[name] = state[name].double()
    else:
        state[name][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="cannot be restored"):
        average.load_state(state)
    assert same(list(average.state().values()), before)


def test_while_it_is_shown_nothing_is_averaged_or_saved() -> None:
    average = EmaSettings().build(weights())
    with average.averaged():
        for call in (lambda: average.update(1), average.state, lambda: average.averaged().__enter__()):
            with pytest.raises(RuntimeError):
                call()
    average.update(1)


def test_an_average_that_never_moves_is_refused() -> None:
    with pytest.raises(ValidationError):
        EmaSettings(decay=1.0)
