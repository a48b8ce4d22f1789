"""Which moments are met, and how often."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainer.core.seeds import Seeds
from trainer.objective.timesteps import AnyTimesteps, CosineMap, LogitNormal, Mode, Power, Timesteps, Uniform

LAWS = [member() for member in get_args(get_args(AnyTimesteps)[0])]
GRID = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)


def kind(member: object) -> str:
    return type(member).__name__


def densities_agree(timesteps: Timesteps, density: Tensor) -> None:
    """Each of twenty parts of the range is met as often as `density` [20] says, in proportion."""
    t = timesteps.draw(Seeds(1), 0, range(6000))
    assert_close(torch.histc(t, 20, 0, 1) / 6000, density / density.sum(), atol=0.012, rtol=0)


def middles() -> Tensor:
    return (torch.arange(20, dtype=torch.float64) + 0.5) / 20


def test_uniform_times_fill_their_range_evenly() -> None:
    t = Uniform(low=0.2, high=0.6).draw(Seeds(1), 0, range(4000))
    assert t.min() >= 0.2
    assert t.max() < 0.6
    assert_close(torch.histc(t, 4, 0.2, 0.6) / 4000, torch.full((4,), 0.25).double(), atol=0.03, rtol=0)


def test_logit_normal_times_have_a_normal_logit() -> None:
    logit = LogitNormal(mean=0.5, deviation=0.7).draw(Seeds(1), 0, range(4000)).logit()
    assert logit.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logit.std().item() == pytest.approx(0.7, abs=0.05)
    t = middles()
    densities_agree(LogitNormal(), (-(t.logit() ** 2) / 2).exp() / (t * (1 - t)))


def test_cosine_map_times_have_the_density_of_the_paper() -> None:
    """Esser et al. 2024, eq. 21: 2 / (pi - 2 pi t + 2 pi t^2)."""
    t = middles()
    densities_agree(CosineMap(), 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_times_are_the_map_of_the_paper(scale: float) -> None:
    """Esser et al. 2024, eq. 20; it must fall all the way, or moments would be met from two sides."""
    found = Mode(scale=scale).shares(GRID)
    expected = [1 - u - scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u) for u in GRID.tolist()]
    assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert (found[1:] <= found[:-1]).all()
    if scale == 0:
        assert_close(found, 1 - GRID)


def test_power_leans_to_the_end_it_names() -> None:
    below = 1 - (1 - torch.linspace(0, 1, 21, dtype=torch.float64)) ** (1 / 3)  # of 1 - u^3
    densities_agree(Power(toward="noise", exponent=3), below[1:] - below[:-1])
    picture = Power(toward="picture", exponent=3)
    assert_close(picture.shares(GRID), 1 - Power(toward="noise", exponent=3).shares(GRID))
    assert_close(Power(toward="picture", exponent=1).shares(GRID), GRID)


def test_power_toward_noise_meets_noise_more_often() -> None:
    assert Power(toward="noise").draw(Seeds(1), 0, range(500)).mean() > 0.65
    assert Power(toward="picture").draw(Seeds(1), 0, range(500)).mean() < 0.35


@pytest.mark.parametrize("law", LAWS, ids=kind)
def test_a_shift_moves_every_law_as_the_paper_says(law: Timesteps) -> None:
    """Esser et al. 2024, eq. 23, and 1 leaves every bit as it is."""
    plain = law.draw(Seeds(2), 3, range(50))
    moved = law.model_copy(update={"shift": 3.0}).draw(Seeds(2), 3, range(50))
    assert_close(moved, 3 * plain / (1 + 2 * plain))
    assert torch.equal(law.model_copy(update={"shift": 1.0}).draw(Seeds(2), 3, range(50)), plain)
    assert (moved >= plain).all()


@pytest.mark.parametrize("law", LAWS, ids=kind)
def test_times_never_reach_the_end_of_their_range(law: Timesteps) -> None:
    ends = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert ((law.shares(ends) >= 0) & (law.shares(ends) <= 1)).all()
    for high in (1.0, 0.3):
        there = law.model_copy(update={"low": 0.1, "high": high, "shift": 1e9})
        assert there.draw(Seeds(1), 0, range(40)).max() < high


def test_a_law_far_out_stays_inside() -> None:
    assert LogitNormal(mean=60).draw(Seeds(1), 0, range(4)).max() < 1
    assert LogitNormal(mean=60, low=0.1, high=0.3).draw(Seeds(1), 0, range(4)).max() < 0.3


@pytest.mark.parametrize("spread", [1, 2, 5, 8])
def test_spread_times_meet_each_part_once_in_so_many_batches(spread: int) -> None:
    """For each slot and each block of batches: after its own turn of the circle, one moment a part."""
    law = Uniform(spread=spread)
    golden = (math.sqrt(5) - 1) / 2
    for block in range(3):
        for slot in (0, 1, 6):
            drawn = [law.draw(Seeds(4), block * spread + n, [slot]).item() for n in range(spread)]
            parts = [math.floor((t - golden * slot) % 1 * spread) for t in drawn]
            assert sorted(parts) == list(range(spread))


def test_the_order_of_the_parts_is_of_chance() -> None:
    law = Uniform(spread=6)
    orders = {tuple(int(law.draw(Seeds(4), 6 * b + n, [0]).item() * 6) for n in range(6)) for b in range(8)}
    assert len(orders) > 4


def test_spread_times_lie_apart_in_a_batch_and_are_uniform_over_the_run() -> None:
    law = Uniform(spread=8)
    for number in range(20):
        turn = sorted(law.draw(Seeds(4), number, range(8)).tolist())
        gaps = [later - earlier for earlier, later in pairwise([*turn, turn[0] + 1])]
        assert max(gaps) < 0.5  # eight independent moments leave a wider gap in every third batch
    many = torch.cat([law.draw(Seeds(4), number, range(4)) for number in range(1000)])
    assert_close(torch.histc(many, 10, 0, 1) / 4000, torch.full((10,), 0.1).double(), atol=0.005, rtol=0)


def test_spread_times_estimate_a_mean_with_less_noise() -> None:
    """What it is for: the mean over eight batches of one picture jumps less from eight to eight."""

    def jumps(law: Timesteps) -> float:
        means = [torch.cat([law.draw(Seeds(9), 8 * b + n, [0]) for n in range(8)]).mean() for b in range(60)]
        return torch.stack(means).std().item()

    assert jumps(Uniform(spread=8)) < 0.25 * jumps(Uniform())
