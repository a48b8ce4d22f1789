"""Many parameters moved as few long ones are moved to the same bits."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.optim.adafactor import Adafactor
from trainer.optim.flat import BLOCK, FlatGroups, silence_unless
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizers import AdamW, AdamW8bit, Lion8bit, OptimizerSettings, ScheduleFreeAdamW

SHAPES = [(16, 320), (640, 16), (7, 3), (5, 1000), (16,), (64, 9, 3, 3), (1100, 1000), ()]


def some(form: torch.memory_format = torch.contiguous_format) -> list[Parameter]:
    """Parameters of many sizes, a convolution among them."""
    chance = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=chance) for shape in SHAPES]
    return [Parameter(value.contiguous(memory_format=form) if value.dim() == 4 else value) for value in values]


def gradients(step: int) -> list[Tensor]:
    chance = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=chance) * 0.1 for shape in SHAPES]


def grouped(parameters: Sequence[Parameter]) -> list[ParameterGroup]:
    return [ParameterGroup("unet", parameters[:5], 1e-2), ParameterGroup("te1", parameters[5:], 1e-3)]


@pytest.mark.parametrize(
    "settings", [AdamW(), AdamW8bit(), Lion8bit(), ScheduleFreeAdamW(), Adafactor()], ids=lambda s: s.kind
)
def test_every_number_goes_where_it_would_go_alone(settings: OptimizerSettings) -> None:
    alone, joined = some(), some()
    flat = FlatGroups(grouped(joined), whole=settings.joins)
    one, other = settings.build(grouped(alone)), settings.build(flat.groups)
    for step in range(4):
        for parameter, gradient in zip(alone, gradients(step), strict=True):
            parameter.grad = gradient.clone()
        for parameter, gradient in zip(joined, gradients(step), strict=True):
            parameter.grad = gradient.clone()
        bearing = flat.gather()
        assert len(bearing) < len(joined)
        one.step()
        other.step()
        flat.drop()
        assert all(parameter.grad is None for parameter in [*joined, *bearing])
    for parameter, expected in zip(joined, alone, strict=True):
        # one kernel may round where another does not: the last bit, and no 8-bit block sees another tensor's numbers
        torch.testing.assert_close(parameter, expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
def test_values_and_layout_stay_and_the_long_one_moves_them(form: torch.memory_format) -> None:
    parameters, before = some(form), some(form)
    flat = FlatGroups(grouped(parameters), whole=True)
    for parameter, old in zip(parameters, before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.stride() == old.stride()
    long = [parameter for group in flat.groups for parameter in group.parameters]
    assert all(parameter.numel() % BLOCK == 0 for parameter in long if parameter is not parameters[6])
    assert sum(parameter is parameters[6] for parameter in long) == 1  # a million numbers stay alone
    with torch.no_grad():
        for parameter in long:
            parameter.add_(1.0)
    for parameter, old in zip(parameters, before, strict=True):
        assert torch.equal(parameter, old + 1.0)


def test_small_tensors_keep_32_bits() -> None:
    parameters = [Parameter(torch.zeros(300)) for _ in range(40)]
    flat = FlatGroups([ParameterGroup("unet", parameters)], whole=True)
    sizes = [parameter.numel() for group in flat.groups for parameter in group.parameters]
    assert max(sizes) < 4096
    assert sum(sizes) == 40 * 512


def test_a_parameter_without_gradient_counts_with_zeros_and_none_at_all_moves_nothing() -> None:
    parameters = some()
    flat = FlatGroups(grouped(parameters), whole=True)
    assert all(parameter.grad is None for parameter in flat.gather())
    parameters[0].grad = torch.ones_like(parameters[0])
    bearing = flat.gather()
    assert sum(float(p.grad.sum()) for p in bearing if p.grad is not None) == parameters[0].numel()


def test_clipping_the_long_ones_shortens_the_whole_gradient() -> None:
    parameters, flat_ones = some(), some()
    for parameter, gradient in zip([*parameters, *flat_ones], [*gradients(0), *gradients(0)], strict=True):
        parameter.grad = gradient
    expected = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    bearing = FlatGroups(grouped(flat_ones), whole=False).gather()
    norm = torch.nn.utils.clip_grad_norm_(bearing, 0.5)
    torch.testing.assert_close(norm, expected)
    for parameter, other in zip(flat_ones, parameters, strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)  # the long gradient's parts are the parameters' own


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing_to_nan(bad: float) -> None:
    parameters = some()
    flat = FlatGroups(grouped(parameters), whole=True)
    optimizer = AdamW().build(flat.groups)
    for parameter, gradient in zip(parameters, gradients(0), strict=True):
        parameter.grad = gradient
    assert parameters[0].grad is not None
    parameters[0].grad[0, 0] = bad
    bearing = flat.gather()
    norm = torch.nn.utils.clip_grad_norm_(bearing, 1.0)
    silence_unless(torch.isfinite(norm), bearing)
    optimizer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in parameters)
    state = optimizer.state[bearing[0]]
    assert not state["exp_avg"].any()
