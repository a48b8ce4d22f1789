import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.core.errors import RecipeError
from trainer.weights.low_rank import (
    FixedRank,
    RetainedEnergy,
    norm_of_product,
    spectrum_of_matrix,
    spectrum_of_product,
)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


sizes = st.integers(1, 24)
seeds = st.integers(0, 2**31)


@given(sizes, sizes, st.integers(1, 12), seeds)
def test_the_spectrum_of_a_product_is_that_of_the_built_matrix(out: int, inner: int, rank: int, seed: int) -> None:
    up, down = some(out, rank, seed=seed), some(rank, inner, seed=seed + 1)
    built = up.double() @ down.double()
    values = torch.linalg.svdvals(built)
    found = spectrum_of_product(up, down)
    count = found.values.numel()
    torch.testing.assert_close(found.values, values[:count], rtol=1e-9, atol=1e-9 * float(values[0]))
    assert math.isclose(found.total, float(built.square().sum()), rel_tol=1e-9)
    torch.testing.assert_close(found.left * found.values @ found.right, built)
    assert math.isclose(norm_of_product(up, down), float(built.norm()), rel_tol=1e-9)


@given(sizes, sizes, st.integers(1, 12), seeds)
def test_halves_are_the_truncated_decomposition(out: int, inner: int, rank: int, seed: int) -> None:
    """No other matrix of this rank is nearer: the error is the norm of the singular values left out."""
    up, down = some(out, 12, seed=seed), some(12, inner, seed=seed + 1)
    built = (up @ down).double()
    values = torch.linalg.svdvals(built)
    spectrum = spectrum_of_product(up, down)
    left, right = spectrum.halves(FixedRank(rank).choose(spectrum))
    error = float((left.double() @ right.double() - built).norm())
    assert math.isclose(error, float(values[rank:].norm()), rel_tol=1e-4, abs_tol=1e-5 * float(values[0]))


@settings(max_examples=30)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=10), seeds)
def test_energy_is_kept_with_as_little_rank_as_possible(strengths: list[float], seed: int) -> None:
    strengths = sorted(strengths, reverse=True)
    count = len(strengths)
    left = torch.linalg.qr(some(16, count, seed=seed).double())[0]
    right = torch.linalg.qr(some(12, count, seed=seed + 1).double())[0]
    spectrum = spectrum_of_product(left * torch.tensor(strengths), right.T)
    squares = torch.tensor(strengths, dtype=torch.float64).square()
    ranks: list[int] = []
    for share in (0.1, 0.5, 0.9, 0.99, 1.0):
        rank = RetainedEnergy(share).choose(spectrum)
        ranks.append(rank)
        assert float(squares[:rank].sum()) >= share * float(squares.sum()) * (1 - 1e-6)
        assert rank == 1 or float(squares[: rank - 1].sum()) < share * float(squares.sum())
    assert ranks == sorted(ranks)
    assert ranks[-1] == count  # all energy is all of it


def test_the_greatest_rank_limits_the_energy() -> None:
    spectrum = spectrum_of_product(some(30, 20), some(20, 40, seed=1))
    assert RetainedEnergy(1.0).choose(spectrum) == 20
    assert RetainedEnergy(1.0, most=7).choose(spectrum) == 7


def test_nothing_has_rank_nothing() -> None:
    for spectrum in (spectrum_of_product(torch.zeros(8, 2), some(2, 9)), spectrum_of_matrix(torch.zeros(8, 9), 4)):
        assert FixedRank(4).choose(spectrum) == 0
        assert RetainedEnergy(0.9).choose(spectrum) == 0


def test_a_rank_that_the_layer_does_not_have_is_not_given() -> None:
    assert FixedRank(50).choose(spectrum_of_product(some(6, 4), some(4, 90, seed=1))) == 4
    assert FixedRank(50).choose(spectrum_of_matrix(some(6, 90), 50)) == 6


@pytest.mark.parametrize("shape", [(600, 700), (700, 600)])
@pytest.mark.parametrize("falling", [0.5, 1.0])
def test_the_quick_way_is_as_near_as_the_exact_one(shape: tuple[int, int], falling: float) -> None:
    """On a spectrum that falls slowly, like a fine-tune's; 600 rows are too many for the exact way."""
    short = min(shape)
    left = torch.linalg.qr(some(shape[0], short))[0]
    right = torch.linalg.qr(some(shape[1], short, seed=1))[0]
    values = torch.arange(1, short + 1).pow(-falling)
    matrix = left * values @ right.T
    found = spectrum_of_matrix(matrix, 32)
    assert found.values.numel() == 32  # the quick way was taken
    assert math.isclose(found.total, float(values.square().sum()), rel_tol=1e-5)
    up, down = found.halves(32)
    error, best = float((matrix - up @ down).norm()), float(values[32:].norm())
    assert best * (1 - 1e-5) <= error <= best * 1.005
    torch.testing.assert_close(found.values[:16], values[:16], rtol=0.01, atol=0)


def test_the_quick_way_finds_a_planted_rank_and_gives_the_same_each_time() -> None:
    matrix = some(640, 8) @ some(8, 900, seed=1)
    drawn = torch.get_rng_state()
    first, second = spectrum_of_matrix(matrix, 8), spectrum_of_matrix(matrix, 8)
    assert torch.equal(torch.get_rng_state(), drawn)  # other draws of the process are not shifted
    assert torch.equal(first.left, second.left)
    up, down = first.halves(8)
    assert float((matrix - up @ down).norm() / matrix.norm()) < 1e-6


@pytest.mark.parametrize("wrong", [lambda: FixedRank(0), lambda: RetainedEnergy(0.0), lambda: RetainedEnergy(1.1)])
def test_impossible_rules_are_refused(wrong: object) -> None:
    with pytest.raises(RecipeError):
        wrong()  # pyright: ignore[reportCallIssue]
