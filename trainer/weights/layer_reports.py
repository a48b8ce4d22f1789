"""What an adapter does to each layer, and what looks wrong with it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.weights.change_norms import change_norm
from trainer.weights.recognising import AdapterModule, rank_of
from trainer.weights.roles import ALPHA, SCALE, VECTOR
from trainer.weights.said_alphas import Said

_HUGE = 1.0  # root mean square of a layer's change; base weights themselves have some 0.03
_HUGE_VECTOR = 0.5  # root mean square of a word's vector; those of CLIP's own words have some 0.014
_OUTLIER = 50.0  # times the median layer


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What an adapter does to one layer."""

    name: str
    rank: int | None
    alpha: float | None  # None where the file leaves it out: the rank is meant
    norm: float | None  # of the change of weight at strength 1; None where it was not computed or is not finite
    rms: float | None  # norm divided by the root of the number of weights
    suspicion: str | None = None


def adapter_layers(
    modules: Mapping[str, AdapterModule], tensors: Mapping[str, Tensor], said: Said
) -> dict[str, LayerReport]:
    """What each module of an adapter file does, whatever is wrong with its tensors.

    Args:
        modules: by name.
        tensors: of the file.
        said: the alphas that a configuration gives, for modules that have none of their own.

    Raises:
        WeightsError: the configuration is broken.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found: list[LayerReport] = []
    for module in modules.values():
        rank = rank_of(module, shapes)
        found.append(_layer(module, tensors, rank, None if rank is None else said.alpha(module.name, rank)))
    return {layer.name: layer for layer in _with_outliers(found)}


def vector_reports(tensors: Mapping[str, Tensor]) -> list[LayerReport]:
    """The length of each vector of an embedding, and whether a text encoder can make anything of it."""
    reports: list[LayerReport] = []
    for name, tensor in tensors.items():
        vectors = tensor.double() if not tensor.is_complex() else tensor.abs().double()
        for number, vector in enumerate(vectors.reshape(-1, vectors.shape[-1]) if vectors.ndim else vectors.view(1, 1)):
            norm = float(vector.norm())
            rms = norm / math.sqrt(vector.numel())
            suspicion = None
            if not math.isfinite(norm):
                suspicion = "NaN or infinity"
            elif norm == 0:
                suspicion = "zero: it means nothing"
            elif rms > _HUGE_VECTOR:
                suspicion = "huge: far longer than the vector of any word"
            finite = math.isfinite(norm)
            label = f"{name}[{number}]"
            reports.append(LayerReport(label, None, None, norm if finite else None, rms if finite else None, suspicion))
    return _with_outliers(reports)


def _layer(module: AdapterModule, tensors: Mapping[str, Tensor], rank: int | None, alpha: float | None) -> LayerReport:
    """What an adapter does to one layer, and what is wrong with it."""
    plain = LayerReport(module.name, rank, None, None, None)
    if ALPHA in module.tensors:
        given = tensors[module.tensors[ALPHA]]
        alpha = float(given) if given.numel() == 1 and not given.is_complex() else math.nan
        if not math.isfinite(alpha):
            return replace(plain, suspicion="its alpha is no finite number")
    plain = replace(plain, alpha=alpha)
    roles = {role: tensors[key] for role, key in module.tensors.items() if role not in {ALPHA, SCALE, VECTOR}}
    lengths = [tensors[module.tensors[role]] for role in (SCALE, VECTOR) if role in module.tensors]
    try:
        norm, count = change_norm(module.name, roles, alpha)
    except WeightsError as error:
        return replace(plain, suspicion=error.what)
    if not math.isfinite(norm) or not all(math.isfinite(float(tensor.abs().double().sum())) for tensor in lengths):
        return replace(plain, suspicion="NaN or infinity")
    rms = norm / math.sqrt(count)
    suspicion = None
    if norm == 0 and not lengths:
        suspicion = "zero: it changes nothing"
    elif rms > _HUGE:
        suspicion = "huge: it overwrites the base's weights"
    return replace(plain, norm=norm, rms=rms, suspicion=suspicion)


def _with_outliers(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """The layers, with a suspicion on those that change far more than the median one."""
    sizes = [layer.rms for layer in layers if layer.rms]
    limit = _OUTLIER * statistics.median(sizes) if sizes else math.inf
    return [
        replace(layer, suspicion=f"over {_OUTLIER:.0f} times the median")
        if layer.suspicion is None and layer.rms is not None and layer.rms > limit
        else layer
        for layer in layers
    ]
