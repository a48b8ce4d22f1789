"""Safetensors in and out; nothing here can run code from a file."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import replacing

_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
"""Files that can run code when they are opened."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a safetensors header says of one tensor."""

    dtype: str  # the format's word: F32, F16, BF16, I64, ...
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The first part of a safetensors file: names and shapes, and the free text beside them."""

    tensors: Mapping[str, TensorFacts]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Names, dtypes, shapes and metadata of a safetensors file, without reading a tensor.

    Raises:
        WeightsError: there is no such file, or it is a pickle, or no whole safetensors file.
    """
    _refuse_other_formats(path)
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= size <= min(_MOST_HEADER_BYTES, path.stat().st_size - 8):
                raise _broken(path, "its header does not fit into the file")
            entries: dict[str, Any] = json.loads(file.read(size).decode("utf-8"))
        metadata: dict[str, str] = dict(entries.pop("__metadata__", {}).items())
        tensors = {n: TensorFacts(str(e["dtype"]), tuple(int(d) for d in e["shape"])) for n, e in entries.items()}
    except OSError as error:
        raise WeightsError(f"This file cannot be read: {error.strerror}.", where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, "its header is no JSON of the format") from error
    return Header(tensors=tensors, metadata={str(k): str(v) for k, v in metadata.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, in the dtypes of the file.

    Raises:
        WeightsError: there is no such file, or it is a pickle, or it is cut short or otherwise broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_other_formats(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _broken(path, str(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors atomically, in the order of their names, so that equal tensors give equal bytes.

    Tensors in a channels-last or otherwise strided form are laid out plainly first, which safetensors asks for.
    """
    from safetensors.torch import save_file

    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata=dict(metadata) if metadata else None)


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not math.isfinite(float(tensor.detach().to(torch.float64).sum())):
            return name
    return None


def is_pickle(path: Path) -> bool:
    """Whether a file of this name can run code when it is opened."""
    return path.suffix.lower() in PICKLE_SUFFIXES


def refused_pickle(path: Path) -> WeightsError:
    """Why such a file is not opened."""
    return WeightsError(
        f"A {path.suffix} file can run code when it is opened, so we never open one.",
        where=str(path),
        mend="Get the .safetensors version of this model, or convert it in a place that you trust.",
    )


def _refuse_other_formats(path: Path) -> None:
    if not path.is_file():
        raise WeightsError("There is no such file.", where=str(path), mend="Check the path.")
    if is_pickle(path):
        raise refused_pickle(path)


def _broken(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"This is no whole safetensors file: {reason}.",
        where=str(path),
        mend="Copy or download the file again.",
    )
