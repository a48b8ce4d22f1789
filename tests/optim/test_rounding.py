"""Rounding by chance is right on average, exact where it can be, and the same for the same seed."""

import pytest
import torch

from trainer.optim.rounding import round_by_chance


def rounded(exact: torch.Tensor, seed: int) -> torch.Tensor:
    into = torch.empty_like(exact, dtype=torch.bfloat16)
    round_by_chance(exact, into, seed)
    return into


def test_each_number_becomes_one_of_its_two_neighbours() -> None:
    exact = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 3
    result = rounded(exact, 1).float()
    below = (exact.view(torch.int32) & -65536).view(torch.float32)  # towards zero
    above = ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32)
    assert bool(((result == below) | (result == above)).all())
    assert 0.4 < (result == above).float().mean() < 0.6


def test_the_mean_over_many_seeds_is_the_number() -> None:
    """With the chance of section 3.1 of arXiv:1502.02551: the mistake of the mean falls with the root of the number."""
    exact = torch.tensor([1.0 + 1e-3, -2.7182817, 3.0e-5, 777.77])
    draws = torch.stack([rounded(exact, seed).double() for seed in range(4000)])
    spacing = exact.double().abs() * 2**-7
    assert bool(((draws.mean(0) - exact.double()).abs() < 0.05 * spacing).all())


def test_small_steps_add_up_where_the_nearest_would_lose_them() -> None:
    chance, nearest = torch.ones(512, dtype=torch.bfloat16), torch.ones(512, dtype=torch.bfloat16)
    for step in range(100):
        round_by_chance(chance.float() + 1e-3, chance, step)
        nearest = (nearest.float() + 1e-3).bfloat16()
    assert bool((nearest == 1).all())
    assert float(chance.float().mean()) == pytest.approx(1.1, abs=0.005)


def test_what_bfloat16_has_stays_and_the_odd_ones_too() -> None:
    whole = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    assert torch.equal(rounded(whole, 3).float(), whole)
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # its low bits are set
    odd = torch.cat((torch.tensor([float("inf"), float("-inf"), 0.0]), nan))
    for seed in range(20):
        result = rounded(odd, seed)
        assert torch.equal(result[:3].float(), odd[:3])
        assert bool(result[3].isnan())


def test_the_seed_alone_decides_whatever_the_layout() -> None:
    exact = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(2))
    plain = rounded(exact, 7)
    assert torch.equal(plain, rounded(exact, 7))
    assert not torch.equal(plain, rounded(exact, 8))
    other = exact.to(memory_format=torch.channels_last)
    into = torch.empty_like(other, dtype=torch.bfloat16)
    round_by_chance(other, into, 7)
    assert torch.equal(into, plain)
