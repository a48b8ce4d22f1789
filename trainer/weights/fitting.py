"""A LoRA that stands for given changes of weight, layer by layer, and how near it comes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.tensors import is_finite
from trainer.weights.lora_state import DOWN, UP, LoraState
from trainer.weights.low_rank import (
    RankRule,
    Spectrum,
    norm_of_product,
    spectrum_of_matrix,
    spectrum_of_product,
)
from trainer.weights.products import Product


@dataclass(frozen=True, slots=True)
class LayerFit:
    """How near one layer comes to the change that it stands for."""

    layer: str
    rank_before: int | None  # None where the change was no product
    rank: int
    norm: float  # Frobenius norm of the wanted change
    error: float  # Frobenius norm of the wanted change less the written one

    @property
    def relative_error(self) -> float:
        """The error as a share of the norm."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True, slots=True)
class FitReport:
    """How near a new LoRA comes to what it stands for."""

    layers: tuple[LayerFit, ...]
    unchanged: tuple[str, ...]  # left out, since nothing changes in them

    @property
    def relative_error(self) -> float:
        """The Frobenius norm of all errors together as a share of that of all changes."""
        return overall_error(self.layers)

    @property
    def parts(self) -> dict[str, float]:
        """The relative error of each network."""
        names = sorted({fit.layer.split(".")[0] for fit in self.layers})
        return {name: overall_error([fit for fit in self.layers if fit.layer.startswith(f"{name}.")]) for name in names}

    @property
    def ranks(self) -> tuple[int, int]:
        """The smallest and the greatest rank of a layer."""
        return min(fit.rank for fit in self.layers), max(fit.rank for fit in self.layers)

    def worst(self, most: int) -> list[LayerFit]:
        """The layers that lose the greatest share of their change, the worst first."""
        return sorted(self.layers, key=lambda fit: (-fit.relative_error, fit.layer))[:most]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "relative_error": self.relative_error,
            "parts": self.parts,
            "unchanged": list(self.unchanged),
            "layers": [
                {
                    "layer": fit.layer,
                    "rank_before": fit.rank_before,
                    "rank": fit.rank,
                    "norm": fit.norm,
                    "error": fit.error,
                    "relative_error": fit.relative_error,
                }
                for fit in self.layers
            ],
        }


def overall_error(layers: Sequence[LayerFit]) -> float:
    """The Frobenius norm of all errors together as a share of that of all changes."""
    whole = math.sqrt(sum(fit.norm**2 for fit in layers))
    return math.sqrt(sum(fit.error**2 for fit in layers)) / whole if whole else 0.0


@dataclass(slots=True)
class Fitting:
    """Gathers the layers of a new LoRA; its errors are measured on the numbers as they will be stored."""

    dtype: torch.dtype  # of the new tensors
    _tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    _alphas: dict[str, float] = field(default_factory=dict[str, float])
    _fits: list[LayerFit] = field(default_factory=list[LayerFit])
    _unchanged: list[str] = field(default_factory=list[str])

    def keep(self, layer: str, change: Product) -> None:
        """The product as it is, at a scale of 1, with halves of about equal size.

        Raises:
            NonFiniteError: it overflows.
        """
        if change.scale == 0:
            self._unchanged.append(layer)
            return
        root = math.sqrt(abs(change.scale))
        up = change.up * math.copysign(root, change.scale)
        self._add_product(layer, change, (up, change.down * root), scale=1.0)

    def shorten(self, layer: str, change: Product, rule: RankRule) -> None:
        """The nearest product of fewer ranks, at the same scale, so that alpha / rank stays as it was.

        Raises:
            NonFiniteError: it overflows.
        """
        if change.scale == 0:
            self._unchanged.append(layer)
            return
        spectrum = spectrum_of_product(change.up, change.down)
        rank = self._rank_of(layer, spectrum, rule)
        if rank:
            self._add_product(layer, change, spectrum.halves(rank), scale=change.scale)

    def approximate(self, layer: str, change: Tensor, rule: RankRule) -> None:
        """The nearest product for a whole change [out in] or [out in k k], at a scale of 1.

        Raises:
            NonFiniteError: the change is not finite.
        """
        matrix = change.float().flatten(1)
        if not is_finite(matrix):
            raise NonFiniteError("The change of this layer is not finite.", where=layer)
        spectrum = spectrum_of_matrix(matrix, rule.most)
        rank = self._rank_of(layer, spectrum, rule)
        if rank:
            up, down = (half.to(self.dtype) for half in spectrum.halves(rank))
            error = float((matrix - up.float() @ down.float()).norm())
            self._fits.append(LayerFit(layer, None, rank, math.sqrt(spectrum.total), error))
            self._store(layer, (up, down), change.shape, alpha=float(rank))

    def state(self) -> LoraState:
        """The new LoRA.

        Raises:
            WeightsError: no layer changes anything.
        """
        if not self._tensors:
            raise WeightsError(
                "Nothing is left: no layer changes anything.", mend="Look at both files with `trainer weights inspect`."
            )
        return LoraState(tensors=self._tensors, alphas=self._alphas)

    def report(self) -> FitReport:
        """How near it comes."""
        return FitReport(layers=tuple(self._fits), unchanged=tuple(self._unchanged))

    def leave_out(self, layer: str) -> None:
        """Note a layer in which nothing changes."""
        self._unchanged.append(layer)

    def _rank_of(self, layer: str, spectrum: Spectrum, rule: RankRule) -> int:
        rank = rule.choose(spectrum)
        if not rank:
            self._unchanged.append(layer)
        return rank

    def _add_product(self, layer: str, change: Product, halves: tuple[Tensor, Tensor], scale: float) -> None:
        up, down = (half.to(self.dtype) for half in halves)
        if not all(is_finite(half) for half in (up, down)):
            raise NonFiniteError(
                f"A weight of this layer overflows in {str(self.dtype).removeprefix('torch.')}.",
                where=layer,
                mend="Write float32 or bfloat16.",
            )
        wanted = change.up.double() * change.scale
        difference = torch.cat([wanted, up.double() * -scale], dim=1), torch.cat([change.down.double(), down.double()])
        norm = norm_of_product(wanted, change.down)
        self._fits.append(LayerFit(layer, change.rank, down.shape[0], norm, norm_of_product(*difference)))
        self._store(layer, (up, down), change.shape, alpha=scale * down.shape[0])

    def _store(self, layer: str, halves: tuple[Tensor, Tensor], shape: torch.Size, alpha: float) -> None:
        up, down = halves
        convolution = len(shape) == 4
        self._tensors[layer + UP] = up[:, :, None, None] if convolution else up
        self._tensors[layer + DOWN] = down.unflatten(1, shape[1:]) if convolution else down
        self._alphas[layer] = alpha
