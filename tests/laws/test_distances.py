"""How far off is how far off."""

from typing import Literal, get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainer.objective.distances import L1, AnyDistance, Distance, Huber, Mse, SmoothL1
from trainer.objective.moments import Moments
from trainer.objective.schedules import DiscreteSchedule

Schedule = Literal["constant", "exponential", "snr"]

MEMBERS = [member() for member in get_args(get_args(AnyDistance)[0])]
SCHEDULED = [member(schedule=word) for member in (Huber, SmoothL1) for word in ("exponential", "snr")]
BORDERED: list[type[Huber] | type[SmoothL1]] = [Huber, SmoothL1]


def kind(member: Distance) -> str:
    return f"{type(member).__name__}-{getattr(member, 'schedule', '')}"


def moments(a: list[float], t: list[float] | None = None) -> Moments:
    shares = torch.tensor(a, dtype=torch.float64)
    times = torch.linspace(0.1, 0.9, len(a)).double() if t is None else torch.tensor(t, dtype=torch.float64)
    return Moments(t=times, a=shares, s=(1 - shares.square()).sqrt())


def latents() -> Tensor:
    return torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("distance", [*MEMBERS, *SCHEDULED], ids=kind)
def test_a_distance_is_a_mean_over_an_example(distance: Distance) -> None:
    clean, other = latents()
    when = moments([0.8, 0.28])
    off = distance.measure(clean, other, when)
    assert off.shape == (2,)
    assert (off > 0).all()
    assert_close(distance.measure(other, clean, when), off)
    assert_close(distance.measure(clean, clean, when), torch.zeros(2).double())
    assert_close(distance.measure(clean.tile(1, 1, 2, 3), other.tile(1, 1, 2, 3), when), off)


def test_huber_is_squared_for_small_and_absolute_for_large_errors() -> None:
    zero, when = torch.zeros(1, 1, 1, 1), moments([0.5])
    huber = Huber(delta=0.1)
    small, large = zero + 1e-4, zero + 1e3
    assert_close(huber.measure(small, zero, when), Mse().measure(small, zero, when), rtol=1e-4, atol=0)
    assert_close(huber.measure(large, zero, when), 2 * 0.1 * L1().measure(large, zero, when), rtol=1e-3, atol=0)


def test_smooth_l1_is_huber_over_its_border() -> None:
    clean, other = latents()
    when = moments([0.8, 0.28])
    assert_close(SmoothL1(delta=0.3).measure(clean, other, when), Huber(delta=0.3).measure(clean, other, when) / 0.3)


@pytest.mark.parametrize("member", BORDERED)
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # at the picture, at a = s, at pure noise; t = 0, 1/2, 1
        ("constant", [0.2, 0.2, 0.2]),
        ("exponential", [1.0, 0.2**0.5, 0.2]),
        ("snr", [1.0, 0.8 / 4 + 0.2, 0.2]),
    ],
)
def test_the_border_follows_its_schedule(
    member: type[Huber] | type[SmoothL1], schedule: Schedule, expected: list[float]
) -> None:
    """As sd-scripts' huber_schedule with huber_c = delta has it: exp(t ln c), and (1 - c) / (1 + sigma)^2 + c."""
    when = moments([1.0, 0.5**0.5, 0.0], [0.0, 0.5, 1.0])
    distance = member(delta=0.2, schedule=schedule)
    border = torch.as_tensor(distance.border(when), dtype=torch.float64).expand(3, 1, 1, 1).flatten()
    assert_close(border, torch.tensor(expected, dtype=torch.float64))
    off = torch.full((3, 1, 1, 1), 0.7, dtype=torch.float64)
    whole = [member(delta=one).measure(off[:1], 0 * off[:1], moments([0.5])).item() for one in expected]
    assert distance.measure(off, 0 * off, when).tolist() == pytest.approx(whole)


@pytest.mark.parametrize("distance", [*MEMBERS, *SCHEDULED], ids=kind)
def test_distances_and_their_slopes_are_finite_up_to_pure_noise(distance: Distance) -> None:
    schedule = DiscreteSchedule.from_scheduler_config(
        {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    )
    t = schedule.moment(torch.tensor([0, 500, 998, 999]))
    a, s = schedule.at(t)
    predicted = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    off = distance.measure(predicted, torch.zeros(4, 2, 3, 3), Moments(t=t, a=a, s=s))
    (slope,) = torch.autograd.grad(off.sum(), predicted)
    assert torch.isfinite(off).all()
    assert torch.isfinite(slope).all()
