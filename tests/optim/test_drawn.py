"""What is drawn of schedule-free optimisers, and that drawing leaves no trace."""

from typing import Any, get_args

import pytest
import torch
from torch.nn import Parameter

from trainer.optim.drawn import drawn_weights
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizers import AnyOptimizer, OptimizerSettings, ScheduleFreeAdamW
from trainer.optim.state import pack

KINDS = get_args(get_args(AnyOptimizer)[0])


def started(settings: OptimizerSettings, steps: int, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Parameter]]:
    generator = torch.Generator().manual_seed(0)
    parameters = [Parameter(torch.randn(70, 60, generator=generator).to(dtype)) for _ in range(3)]
    optimizer = settings.build([ParameterGroup("all", parameters)])
    walk(optimizer, parameters, 0, steps)
    return optimizer, parameters


def walk(optimizer: Any, parameters: list[Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(10 + step)
        for parameter in parameters[:2]:  # the third never learns
            parameter.grad = torch.randn(70, 60, generator=generator).to(parameter.dtype)
        optimizer.step()


def bits(parameters: list[Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_schedule_free_is_drawn_as_its_library_would(dtype: torch.dtype) -> None:
    optimizer, parameters = started(ScheduleFreeAdamW(rate=0.1), 6, dtype)
    trained = bits(parameters)
    with drawn_weights(optimizer):
        drawn = bits(parameters)
    assert same(bits(parameters), trained)
    optimizer.eval()
    assert same(drawn, bits(parameters))
    assert not torch.equal(drawn[0], trained[0])
    assert torch.equal(drawn[2], trained[2])


def test_what_is_drawn_is_the_average_of_the_paper() -> None:
    """Defazio et al. 2024: x is the mean of all z, weighted by squared rates, which are all one here."""
    weight = Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    settings = ScheduleFreeAdamW(rate=0.1, betas=(0.8, 0.9), weight_decay=0.5, epsilon=1e-3)
    optimizer = settings.build([ParameterGroup("all", [weight])])
    x = z = y = 2.0
    v = 0.0
    for step, gradient in enumerate((3.0, -1.0, 2.0), start=1):
        weight.grad = torch.full((3,), gradient, dtype=torch.float64)
        optimizer.step()
        v = 0.9 * v + 0.1 * gradient**2
        z -= 0.1 * (gradient / ((v / (1 - 0.9**step)) ** 0.5 + 1e-3) + 0.5 * y)
        x += (z - x) / step
        y = 0.2 * z + 0.8 * x
    assert weight.tolist() == pytest.approx([y] * 3)
    with drawn_weights(optimizer):
        assert weight.tolist() == pytest.approx([x] * 3)


@pytest.mark.parametrize("member", KINDS, ids=lambda member: member.__name__)
def test_a_run_that_draws_ends_with_the_bytes_of_one_that_does_not(member: type[OptimizerSettings]) -> None:
    (drawing, one), (plain, other) = started(member(), 0), started(member(), 0)
    for step in range(5):
        with drawn_weights(drawing):
            pass
        walk(drawing, one, step, step + 1)
        walk(plain, other, step, step + 1)
        with pytest.raises(KeyboardInterrupt), drawn_weights(drawing):
            raise KeyboardInterrupt
    assert same(bits(one), bits(other))
    (tensors, facts), (plain_tensors, plain_facts) = pack(drawing), pack(plain)
    assert facts == plain_facts
    assert tensors.keys() == plain_tensors.keys()
    assert all(torch.equal(tensors[name], plain_tensors[name]) for name in tensors)


@pytest.mark.parametrize("member", [one for one in KINDS if one is not ScheduleFreeAdamW], ids=lambda one: one.__name__)
def test_all_others_are_drawn_as_they_are_trained(member: type[OptimizerSettings]) -> None:
    optimizer, parameters = started(member(), 2)
    trained = bits(parameters)
    with drawn_weights(optimizer):
        assert same(bits(parameters), trained)
