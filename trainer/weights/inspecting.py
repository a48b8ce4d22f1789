"""Say what a model file or folder is."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import inside
from trainer.core.tensors import Header, TensorFacts, read_header, read_tensors
from trainer.weights.change_norms import change_norm
from trainer.weights.recognising import AdapterModule, adapter_modules, family_of, kind_of, parts_of, rank_of

_ADAPTERS = {"lora", "dora", "loha", "lokr"}
_HUGE = 1.0  # root mean square of a layer's change; base weights themselves have some 0.03
_OUTLIER = 50.0  # times the median layer


@dataclass(frozen=True, slots=True)
class PartReport:
    """One network that the file belongs to or holds."""

    name: str
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    modules: int | None = None  # adapters only, as the two below
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What an adapter does to one layer."""

    name: str
    rank: int | None
    alpha: float | None  # None where the file leaves it out: the rank is meant
    norm: float | None  # of the change of weight at strength 1; None where it was not computed or is not finite
    rms: float | None  # norm divided by the root of the number of weights
    suspicion: str | None = None


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a file or folder is."""

    path: str
    kind: str
    family: str
    prediction: str | None
    bytes: int
    parts: tuple[PartReport, ...]
    layers: tuple[LayerReport, ...]  # adapters only
    trigger: str | None
    base: str | None
    metadata: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """The numbers that the file holds."""
        return sum(part.parameters for part in self.parts)

    @property
    def suspicious(self) -> tuple[LayerReport, ...]:
        """The layers that a person should look at."""
        return tuple(layer for layer in self.layers if layer.suspicion is not None)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "parameters": self.parameters, "suspicious": len(self.suspicious)}


def describe(path: Path) -> FileReport:
    """What a safetensors file or a diffusers folder is; of big files only the header is read, of adapters all.

    Raises:
        WeightsError: there is no such thing, or it is a pickle, broken, or no model.
    """
    if path.is_dir():
        return _describe_folder(path)
    header = read_header(path)
    names = list(header.tensors)
    kind = kind_of(names)
    if kind in _ADAPTERS:
        parts, layers = _adapter(path, header)
    else:
        _check_whole(path)
        parts = [_part(name, facts) for name, facts in parts_of(header, kind).items()]
        layers = []
    metadata = header.metadata
    return FileReport(
        path=str(path),
        kind=kind,
        family=family_of(header, kind),
        prediction=_prediction(names, metadata),
        bytes=path.stat().st_size,
        parts=tuple(parts),
        layers=tuple(layers),
        trigger=metadata.get("modelspec.trigger_phrase"),
        base=metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version"),
        metadata=metadata,
    )


def _adapter(path: Path, header: Header) -> tuple[list[PartReport], list[LayerReport]]:
    """The parts and layers of an adapter file."""
    tensors = read_tensors(path)
    shapes = {name: facts.shape for name, facts in header.tensors.items()}
    modules = adapter_modules(list(tensors))
    layers = {module.name: _layer(module, tensors, rank_of(module, shapes)) for module in modules.values()}
    parts: list[PartReport] = []
    for part in sorted({module.part for module in modules.values()}):
        members = [module for module in modules.values() if module.part == part]
        facts = [header.tensors[key] for module in members for key in module.tensors.values()]
        found = [layers[module.name] for module in members]
        ranks = tuple(sorted({layer.rank for layer in found if layer.rank is not None}))
        alphas = tuple(sorted({layer.alpha for layer in found if layer.alpha is not None}))
        parts.append(_part(part, facts, modules=len(members), ranks=ranks, alphas=alphas))
    known = {key for module in modules.values() for key in module.tensors.values()}
    foreign = [facts for name, facts in header.tensors.items() if name not in known]
    if foreign:
        parts.append(_part("other", foreign))
    return parts, _with_outliers([layers[name] for name in sorted(layers)])


def _layer(module: AdapterModule, tensors: Mapping[str, Tensor], rank: int | None) -> LayerReport:
    """What an adapter does to one layer, and what is wrong with it."""
    roles = {role: tensors[key] for role, key in module.tensors.items() if role != "alpha"}
    alpha: float | None = None
    suspicion: str | None = None
    norm: float | None = None
    rms: float | None = None
    if "alpha" in module.tensors:
        given = tensors[module.tensors["alpha"]]
        alpha = float(given) if given.numel() == 1 and not given.is_complex() else math.nan
    if alpha is not None and not math.isfinite(alpha):
        return LayerReport(module.name, rank, None, None, None, "its alpha is no finite number")
    try:
        found = change_norm(roles, alpha)
    except WeightsError as error:
        return LayerReport(module.name, rank, alpha, None, None, error.what)
    if found is not None:
        norm, rms = found[0], found[0] / math.sqrt(found[1])
        if not math.isfinite(norm):
            norm, rms, suspicion = None, None, "NaN or infinity"
        elif norm == 0:
            suspicion = "zero: it changes nothing"
        elif rms > _HUGE:
            suspicion = "huge: it overwrites the base's weights"
    return LayerReport(module.name, rank, alpha, norm, rms, suspicion)


def _with_outliers(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """The layers, with a suspicion on those that change far more than the median one."""
    sizes = [layer.rms for layer in layers if layer.rms]
    limit = _OUTLIER * statistics.median(sizes) if sizes else math.inf
    return [
        LayerReport(layer.name, layer.rank, layer.alpha, layer.norm, layer.rms, f"over {_OUTLIER:.0f} times the median")
        if layer.suspicion is None and layer.rms is not None and layer.rms > limit
        else layer
        for layer in layers
    ]


def _describe_folder(folder: Path) -> FileReport:
    """What a model in the diffusers layout is."""
    index = _json_object(folder / "model_index.json")
    parts: list[PartReport] = []
    size = 0
    headers: dict[str, Header] = {}
    for name in sorted(index):
        part = inside(folder, name) if not name.startswith("_") else None
        files = _weight_files(part) if part is not None and part.is_dir() else []
        found = [read_header(file) for file in files]
        if found:
            facts = [one for header in found for one in header.tensors.values()]
            parts.append(_part(name, facts))
            size += sum(file.stat().st_size for file in files)
            headers[name] = Header({k: v for h in found for k, v in h.tensors.items()}, {})
    if "unet" not in headers:
        raise WeightsError("This folder has no U-Net in safetensors.", where=str(folder), mend="Download it again.")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    prediction = _json_object(scheduler).get("prediction_type") if scheduler.is_file() else None
    return FileReport(
        path=str(folder),
        kind="diffusers folder",
        family=family_of(headers["unet"], "unet"),
        prediction=None if prediction is None else str(prediction),
        bytes=size,
        parts=tuple(parts),
        layers=(),
        trigger=None,
        base=str(index.get("_class_name", "")) or None,
        metadata={},
    )


def _weight_files(part: Path) -> list[Path]:
    """The safetensors files of one network; a second copy in fewer bits (`.fp16.`) does not count twice."""
    files = sorted(part.glob("*.safetensors"))
    plain = [file for file in files if ".fp16" not in file.name and ".non_ema" not in file.name]
    return plain or files


def _part(
    name: str,
    facts: Sequence[TensorFacts],
    *,
    modules: int | None = None,
    ranks: tuple[int, ...] = (),
    alphas: tuple[float, ...] = (),
) -> PartReport:
    return PartReport(
        name=name,
        tensors=len(facts),
        parameters=sum(math.prod(one.shape) for one in facts),
        dtypes=tuple(sorted({one.dtype for one in facts})),
        modules=modules,
        ranks=ranks,
        alphas=alphas,
    )


def _prediction(names: Sequence[str], metadata: Mapping[str, str]) -> str | None:
    """What the model predicts, as far as the file says so."""
    if "v_pred" in names:
        return "v"
    return metadata.get("modelspec.prediction_type")


def _check_whole(path: Path) -> None:
    """Make sure that the tensors cover the file exactly, without reading them.

    Raises:
        WeightsError: the file is cut short, or holds bytes that no tensor claims.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise WeightsError(
            f"This is no whole safetensors file: {error}.", where=str(path), mend="Copy or download the file again."
        ) from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            "This folder is no model in the diffusers layout.",
            where=str(path),
            mend="Name a .safetensors file, or a folder that holds model_index.json.",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError("This file is no readable JSON.", where=str(path)) from error
    if not isinstance(value, dict):
        raise WeightsError("This file should hold a JSON object.", where=str(path))
    return value  # pyright: ignore[reportUnknownVariableType]
