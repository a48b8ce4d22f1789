"""Large safetensors files, tensor by tensor: what is read or written is never in memory twice."""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from blake3 import blake3
from torch import Tensor
from typing_extensions import Self

from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.files import printable, replacing
from trainer.core.tensors import DTYPES, TensorFacts, broken, is_finite, read_header

_PIECE = 8 << 20  # bytes that pass through memory on their way into another dtype
_WORDS = {dtype: word for word, dtype in DTYPES.items()}


class TensorFile:
    """A safetensors file, open for reading.

    The bytes are read and not mapped: mapped pages would count as the process's memory for as long as the file is open.
    """

    def __init__(self, path: Path) -> None:
        """The file is open, and its header is read.

        Raises:
            WeightsError: there is no such file, or it is a pickle, or no whole safetensors file.
        """
        self.path = path
        self.header = read_header(path)
        self._file = path.open("rb", buffering=0)
        self._piece = torch.empty(_PIECE, dtype=torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, name: str, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        """One tensor, or some of its rows, on the CPU; numbers with a point come in `dtype`, if it is given.

        Raises:
            WeightsError: the file ends too early, cannot be read, or holds numbers in a format that we do not know.
        """
        facts = self.header.tensors[name]
        stored = self._dtype(name)
        shape, begin, _ = _part(facts, rows)
        found = torch.empty(shape, dtype=dtype if dtype is not None and stored.is_floating_point else stored)
        flat = found.view(-1)
        self._file.seek(begin)
        if found.dtype == stored:
            self._fill(flat)
            return found
        for piece in flat.split(_PIECE // stored.itemsize):
            source = self._piece[: piece.numel() * stored.itemsize].view(stored)
            self._fill(source)
            piece.copy_(source)
        return found

    def pieces(self, name: str, rows: slice | None = None) -> Iterator[memoryview]:
        """The bytes of a tensor, or of some of its rows, as they are stored; each piece is gone when the next comes.

        Raises:
            WeightsError: the file ends too early or cannot be read.
        """
        _, begin, end = _part(self.header.tensors[name], rows)
        self._file.seek(begin)
        for start in range(begin, end, _PIECE):
            piece = self._piece[: min(_PIECE, end - start)]
            self._fill(piece)
            yield bytes_of(piece)

    def _dtype(self, name: str) -> torch.dtype:
        word = self.header.tensors[name].dtype
        if word not in DTYPES:
            raise WeightsError(
                f"This file holds numbers in the format {printable(word[:20])}, which we do not know.",
                where=f"{self.path}, {printable(name[:200])}",
                mend="Get the version of this model in float32, float16 or bfloat16.",
            )
        return DTYPES[word]

    def _fill(self, tensor: Tensor) -> None:
        target = bytes_of(tensor)
        try:
            while target:
                count = self._file.readinto(target)
                if not count:
                    raise broken(self.path, "it ends too early")
                target = target[count:]
        except OSError as error:
            raise WeightsError(f"This file cannot be read: {error.strerror}.", where=str(self.path)) from error


def write_tensor_file(
    path: Path, plan: Mapping[str, TensorFacts], tensor_of: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file tensor by tensor, read it again, and give it its name when it is right.

    The order in the file follows from the names and dtypes alone, as in the format's own library, so that equal
    tensors give equal bytes.

    Args:
        path: of the file.
        plan: dtype and shape of each tensor, which are known before it is made.
        tensor_of: makes a tensor; it is asked for each name once, in the order of the file.
        metadata: free text for the header.

    Raises:
        NonFiniteError: a tensor holds NaN or infinity.
        WeightsError: a tensor is not as planned, or what can be read back differs.
    """
    names = sorted(plan, key=lambda name: (-DTYPES[plan[name].dtype].itemsize, name))
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(_header(plan, names, metadata))
            written = blake3(max_threads=blake3.AUTO)
            for name in names:
                _write(file, written, name, plan[name], tensor_of(name))
        _check_written(temporary, names, metadata, written.digest())


def planned(tensor_dtype: torch.dtype, shape: Iterable[int]) -> TensorFacts:
    """The plan of one tensor for `write_tensor_file`."""
    return TensorFacts(_WORDS[tensor_dtype], tuple(shape))


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # numpy's types do not say that it is a buffer
    return memoryview(array)


def _part(facts: TensorFacts, rows: slice | None) -> tuple[tuple[int, ...], int, int]:
    """Shape, beginning and end of the chosen rows."""
    if rows is None:
        return facts.shape, facts.begin, facts.end
    first, last, _ = rows.indices(facts.shape[0])
    row = (facts.end - facts.begin) // facts.shape[0]
    return (last - first, *facts.shape[1:]), facts.begin + first * row, facts.begin + last * row


def _header(plan: Mapping[str, TensorFacts], names: list[str], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    reached = 0
    for name in names:
        facts = plan[name]
        size = torch.Size(facts.shape).numel() * DTYPES[facts.dtype].itemsize
        entries[name] = {
            "dtype": facts.dtype,
            "shape": list(facts.shape),
            "data_offsets": [reached, reached + size],
        }
        reached += size
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes, which the format asks for
    return struct.pack("<Q", len(text)) + text


def _write(file: BinaryIO, written: blake3, name: str, facts: TensorFacts, tensor: Tensor) -> None:
    if tensor.dtype != DTYPES[facts.dtype] or tuple(tensor.shape) != facts.shape:
        raise WeightsError(
            f"{name} is {tuple(tensor.shape)} in {tensor.dtype}, and should be {facts.shape} in {facts.dtype}.",
            mend="This is a mistake of the program: please report it.",
        )
    plain = tensor.detach().cpu().contiguous()
    if plain.is_floating_point() and not is_finite(plain):
        raise NonFiniteError(
            f"The weight {name} is not finite, so nothing was written.",
            mend="Go back to a checkpoint from before the loss became NaN, or write in float32.",
        )
    content = bytes_of(plain)
    file.write(content)
    written.update(content)


def _check_written(path: Path, names: list[str], metadata: Mapping[str, str], digest: bytes) -> None:
    """Make sure that what lies on the disk is what was written."""
    with TensorFile(path) as file:
        found = blake3(max_threads=blake3.AUTO)
        for name in names:
            for piece in file.pieces(name):
                found.update(piece)
        if found.digest() != digest or dict(file.header.metadata) != dict(metadata):
            raise broken(path, "what was read back is not what was written")
