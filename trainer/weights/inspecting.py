"""Say what a model file or folder is."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import inside
from trainer.core.tensors import Header, TensorFacts, read_header, read_tensors
from trainer.weights.embeddings import PARTS_OF_KEYS, token_of
from trainer.weights.layer_reports import LayerReport, adapter_layers, vector_reports
from trainer.weights.peft_configs import PEFT_CONFIG, PEFT_FILE, PEFT_PREFIX
from trainer.weights.reading import pieces_of
from trainer.weights.recognising import PARTS, adapter_modules, family_of, kind_of, parts_of
from trainer.weights.said_alphas import Said, said_beside, said_in_header

_ADAPTERS = {"lora", "dora", "loha", "lokr"}


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
class FileReport:
    """What a file or folder is."""

    path: str
    kind: str
    family: str
    prediction: str | None
    bytes: int
    parts: tuple[PartReport, ...]
    layers: tuple[LayerReport, ...]  # of adapters; of embeddings one a vector
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
    """What a safetensors file, a diffusers folder or peft's folder is; of big files only the header is read.

    Raises:
        WeightsError: there is no such thing, or it is a pickle, broken, or no model.
    """
    if path.is_dir():
        pefts = (path / PEFT_FILE, *(path / part / PEFT_FILE for part in PARTS))
        if (path / "model_index.json").is_file() or not any(file.is_file() for file in pefts):
            return _describe_folder(path)
        return _describe_file(path, *_opened(pieces_of(path, PARTS)))
    header = read_header(path)
    if kind_of(list(header.tensors)) in _ADAPTERS:
        return _describe_file(path, *_opened({"": path}))
    return _describe_file(path, header, Said({}))


def _describe_file(path: Path, header: Header, said: Said, tensors: Mapping[str, Tensor] | None = None) -> FileReport:
    """What one file is, or several that are one adapter; the tensors are those of adapters."""
    names = list(header.tensors)
    kind = kind_of(names)
    layers: list[LayerReport] = []
    if tensors is not None:
        parts, layers = _adapter(header, tensors, said)
    elif kind == "textual inversion":
        parts = [_part(PARTS_OF_KEYS.get(name, "text_encoder"), [facts]) for name, facts in header.tensors.items()]
        layers = vector_reports(read_tensors(path))
    else:
        _check_whole(path)
        parts = [_part(name, facts) for name, facts in parts_of(header, kind).items()]
    metadata = header.metadata
    files = pieces_of(path, PARTS).values()
    return FileReport(
        path=str(path),
        kind=kind,
        family=family_of(header, kind),
        prediction=_prediction(names, metadata),
        bytes=sum(file.stat().st_size for file in files),
        parts=tuple(parts),
        layers=tuple(layers),
        trigger=metadata.get("modelspec.trigger_phrase") or token_of(names if kind == "textual inversion" else []),
        base=metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version"),
        metadata=metadata,
    )


def _opened(pieces: Mapping[str, Path]) -> tuple[Header, Said, dict[str, Tensor]]:
    """An adapter's files as one, each network's names with its own in front where a folder says it."""
    facts: dict[str, TensorFacts] = {}
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    said: dict[str, Mapping[str, Any]] = {}
    for part, file in pieces.items():
        header = read_header(file)
        names = {name: f"{part}.{name.removeprefix(PEFT_PREFIX)}" if part else name for name in header.tensors}
        facts |= {names[name]: one for name, one in header.tensors.items()}
        tensors |= {names[name]: tensor for name, tensor in read_tensors(file).items()}
        metadata |= header.metadata
        pefts = any(name.startswith(PEFT_PREFIX) for name in names)
        found = said_beside(file.with_name(PEFT_CONFIG)) if pefts else said_in_header(file, header.metadata)
        said |= {key or part: configuration for key, configuration in found.configurations.items()}
    return Header(facts, metadata), Said(said), tensors


def _adapter(header: Header, tensors: Mapping[str, Tensor], said: Said) -> tuple[list[PartReport], list[LayerReport]]:
    """The parts and layers of an adapter."""
    modules = adapter_modules(list(tensors))
    layers = adapter_layers(modules, tensors, said)
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
    return parts, [layers[name] for name in sorted(layers)]


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
