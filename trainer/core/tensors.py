"""Safetensors in and out; nothing here can run code from a file."""

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import printable, replacing

_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
_PIECE = 1 << 20  # numbers that are looked at together
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's words for what torch calls its dtypes."""

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
"""Files that can run code when they are opened."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a safetensors header says of one tensor."""

    dtype: str  # the format's word: F32, F16, BF16, I64, ...
    shape: tuple[int, ...]
    begin: int = 0  # of its bytes, counted from the start of the file
    end: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """The first part of a safetensors file: names and shapes, and the free text beside them."""

    tensors: Mapping[str, TensorFacts]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Names, dtypes, shapes, places and metadata of a safetensors file, without reading a tensor.

    Raises:
        WeightsError: there is no such file, or it is a pickle, or no whole safetensors file: its header is no JSON of
            the format, or its tensors do not cover the rest of the file exactly once.
    """
    _refuse_other_formats(path)
    try:
        with path.open("rb") as file:
            whole = path.stat().st_size
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= size <= min(_MOST_HEADER_BYTES, whole - 8):
                raise broken(path, "its header does not fit into the file")
            entries: dict[str, Any] = json.loads(file.read(size).decode("utf-8"))
        metadata: dict[str, str] = dict(entries.pop("__metadata__", {}).items())
        tensors = {name: _facts(entry, 8 + size) for name, entry in entries.items()}
    except OSError as error:
        raise WeightsError(f"This file cannot be read: {error.strerror}.", where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise broken(path, "its header is no JSON of the format") from error
    _check_places(path, tensors, 8 + size, whole)
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
        raise broken(path, str(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors atomically, in the order of their names, so that equal tensors give equal bytes.

    Tensors in a channels-last or otherwise strided form are laid out plainly first, which safetensors asks for.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            code = _OS_ERROR.search(str(error))  # how the library, which is written in Rust, tells what the system said
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of floating-point numbers holds neither NaN nor infinity; needs no second copy of it."""
    for stored in tensor.detach().reshape(-1).split(_PIECE) if tensor.numel() else ():
        piece = stored.float() if stored.dtype.itemsize == 1 else stored  # eight bits know no order
        least, most = piece.aminmax()  # one pass, and NaN is passed on
        if not (math.isfinite(least) and math.isfinite(most)):
            return False
    return True


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
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


def broken(path: Path, reason: str) -> WeightsError:
    """What is wrong with a safetensors file."""
    return WeightsError(
        f"This is no whole safetensors file: {reason}.",
        where=str(path),
        mend="Copy or download the file again.",
    )


def _refuse_other_formats(path: Path) -> None:
    if not path.is_file():
        raise WeightsError("There is no such file.", where=str(path), mend="Check the path.")
    if is_pickle(path):
        raise refused_pickle(path)


def _facts(entry: Mapping[str, Any], start: int) -> TensorFacts:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    if any(size < 0 for size in shape):
        raise ValueError
    return TensorFacts(str(entry["dtype"]), shape, begin + start, end + start)


def _check_places(path: Path, tensors: Mapping[str, TensorFacts], start: int, whole: int) -> None:
    """Make sure that the tensors lie one behind the other, from the header to the end, each as long as its shape."""
    reached = start
    for name, facts in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if facts.begin != reached or facts.end < facts.begin:
            raise broken(path, f"the bytes of {printable(name[:200])} overlap others or leave a gap")
        if facts.dtype in DTYPES and facts.end - facts.begin != math.prod(facts.shape) * DTYPES[facts.dtype].itemsize:
            raise broken(path, f"the bytes of {printable(name[:200])} do not fit its shape")
        reached = facts.end
    if reached != whole:
        raise broken(path, f"it should be {reached:,} bytes long and is {whole:,}")
