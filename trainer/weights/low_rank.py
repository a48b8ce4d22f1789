"""The best product of two thin matrices for a change of weight, and what it leaves out."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from trainer.core.errors import RecipeError

_EXACT: Final = 512  # rows or columns; a whole decomposition takes 0.1 s then, and grows with the cube
_SPARE: Final = 16  # directions more than are asked for
_PASSES: Final = 4  # over the matrix; [10240 1280] at rank 32 takes 0.3 s on one core then, and whole 3 s
_SEED: Final = 1
_ROUNDING: Final = 10  # units in the last place of the norm


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A matrix [out in] as left · diag(values) · right, the greatest values first; perhaps only its greatest ones."""

    left: Tensor  # [out n], orthonormal columns
    values: Tensor  # [n], singular values
    right: Tensor  # [n in], orthonormal rows
    total: float  # sum of the squares of all singular values: the squared Frobenius norm of the matrix
    rounding: float  # singular values below this are none

    def halves(self, rank: int) -> tuple[Tensor, Tensor]:
        """Two halves, [out rank] and [rank in], float32 and of equal size, whose product is nearest to the matrix."""
        root = self.values[:rank].sqrt()
        return (self.left[:, :rank] * root).float(), (root[:, None] * self.right[:rank]).float()


@dataclass(frozen=True, slots=True)
class FixedRank:
    """The same rank for each layer, or less where the layer has less."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RecipeError("A rank is at least 1.", where="--rank")

    @property
    def most(self) -> int:
        """No layer gets more."""
        return self.rank

    def __str__(self) -> str:
        return f"rank {self.rank}"

    def choose(self, spectrum: Spectrum) -> int:
        """The rank of a layer; 0 where it changes nothing."""
        return min(self.rank, _directions(spectrum))


@dataclass(frozen=True, slots=True)
class RetainedEnergy:
    """As much rank as a layer needs to keep a share of the sum of its squared singular values."""

    share: float
    """Above 0, up to 1; 0.9 leaves a relative error of the root of 0.1, so 0.32."""
    most: int | None = None
    """No layer gets more."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RecipeError("An energy is a share above 0, up to 1.", where="--energy")
        if self.most is not None and self.most < 1:
            raise RecipeError("A rank is at least 1.", where="--max-rank")

    def __str__(self) -> str:
        limit = "" if self.most is None else f", at most rank {self.most}"
        return f"energy {self.share:g}{limit}"

    def choose(self, spectrum: Spectrum) -> int:
        """The rank of a layer; 0 where it changes nothing."""
        directions = _directions(spectrum)
        squares = spectrum.values.double().square()
        unknown = max(spectrum.total - float(squares.sum()), 0.0)  # in directions that were not computed
        lost = squares.flip(0).cumsum(0).flip(0) + unknown  # by keeping fewer than the first, the second, ...
        needed = int((lost > (1 - self.share) * spectrum.total).sum())
        return min(max(needed, 1), directions, directions if self.most is None else self.most)


RankRule = FixedRank | RetainedEnergy
"""How much rank a layer gets."""


def spectrum_of_product(up: Tensor, down: Tensor) -> Spectrum:
    """The spectrum of up @ down, exactly and without building it: float64, from two thin QRs and a small SVD.

    Args:
        up: [out rank].
        down: [rank in].
    """
    left, small_left = torch.linalg.qr(up.double())
    right, small_right = torch.linalg.qr(down.double().T)
    inner, values, outer = torch.linalg.svd(small_left @ small_right.T, full_matrices=False)
    rounding = _ROUNDING * float(up.double().norm() * down.double().norm()) * torch.finfo(torch.float64).eps
    return Spectrum(left @ inner, values, outer @ right.T, float(values.square().sum()), rounding)


def spectrum_of_matrix(matrix: Tensor, most: int | None) -> Spectrum:
    """The spectrum of a matrix [out in]: whole for a small one, else its `most` greatest values.

    The large case is the randomised method of Halko et al. 2011, arXiv:0909.4061, algorithm 4.4, with a fixed seed. It
    finds a planted low rank to the last digits; up to rank 128 its error was within 0.5 % of the best on slowly falling
    spectra, and within 1 % on pure noise.
    """
    matrix = matrix.float()
    total = float(matrix.double().square().sum())
    rounding = _ROUNDING * math.sqrt(total) * torch.finfo(torch.float32).eps
    short = min(matrix.shape)
    if most is None or short <= _EXACT or 2 * (most + _SPARE) >= short:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return Spectrum(left, values, right, float(values.double().square().sum()), rounding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)  # svd_lowrank takes no generator
        left, values, right = torch.svd_lowrank(matrix, q=most + _SPARE, niter=_PASSES)
    return Spectrum(left[:, :most], values[:most], right[:, :most].T, total, rounding)


def norm_of_product(up: Tensor, down: Tensor) -> float:
    """The Frobenius norm of up @ down without building it, as exact for small differences of large products.

    Args:
        up: [out rank].
        down: [rank in].
    """
    small_left = torch.linalg.qr(up.double(), mode="r")[1]
    small_right = torch.linalg.qr(down.double().T, mode="r")[1]
    return float((small_left @ small_right.T).norm())


def _directions(spectrum: Spectrum) -> int:
    """How many singular values are more than rounding."""
    return int((spectrum.values > spectrum.rounding).sum())
