"""Large files are read and written as the format's own library does it, and damaged ones are refused."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.core import tensor_files
from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.tensor_files import TensorFile, planned, write_tensor_file
from trainer.core.tensors import TensorFacts, is_finite, read_header


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Of every dtype, some larger than the piece that passes through memory at once."""
    monkeypatch.setattr(tensor_files, "_PIECE", 64)
    generator = torch.Generator().manual_seed(0)
    made = {f"f{n}": torch.randn(n, 3, generator=generator) for n in (1, 5, 40)}
    made |= {
        str(d): torch.randn(9, 7, generator=generator).to(d) for d in (torch.float64, torch.float16, torch.bfloat16)
    }
    made |= {str(d): torch.randn(9, 7, generator=generator).to(d) for d in (torch.float8_e4m3fn, torch.float8_e5m2)}
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    return made | {str(d): torch.arange(77).to(d) for d in whole} | {"none": torch.empty(0), "one": torch.tensor(2.5)}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    plan = {name: planned(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_tensor_file(path, plan, tensors.__getitem__, metadata or {})


def test_what_is_written_is_what_the_formats_library_reads(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "ours.safetensors"
    write(path, tensors, {"format": "pt", "title": "ünï"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name
    assert read_header(path).metadata == {"format": "pt", "title": "ünï"}
    assert (struct.unpack("<Q", path.read_bytes()[:8])[0]) % 8 == 0


def test_tensors_are_read_as_the_formats_library_reads_them(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path)
    with TensorFile(path) as file:
        for name, tensor in tensors.items():
            assert torch.equal(file.read(name).double(), tensor.double()), name
            assert b"".join(map(bytes, file.pieces(name))) == bytes(tensor.view(-1).view(torch.uint8).tolist())
            for dtype in (torch.float32, torch.bfloat16):
                expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
                found = file.read(name, dtype)
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected), name
        assert torch.equal(file.read("f40", torch.float16, slice(10, 20)), tensors["f40"][10:20].half())
        assert b"".join(map(bytes, file.pieces("f40", slice(39, 40)))) == bytes(
            tensors["f40"][39].view(torch.uint8).tolist()
        )


def test_nothing_is_written_of_what_is_not_finite_or_not_as_planned(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(NonFiniteError, match="b is not finite"):
        write(path, {"a": torch.zeros(2), "b": torch.tensor([0.0, float("inf")])})
    with pytest.raises(WeightsError, match=r"a is .*should be"):
        write_tensor_file(path, {"a": TensorFacts("F32", (3,))}, lambda _: torch.zeros(2), {})
    assert list(tmp_path.iterdir()) == []


def test_what_reached_the_disk_otherwise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.safetensors"
    whole = TensorFile.__init__

    def damaged(self: TensorFile, written: Path) -> None:
        with written.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x01")
        whole(self, written)

    monkeypatch.setattr(TensorFile, "__init__", damaged)
    with pytest.raises(WeightsError, match="read back is not what was written"):
        write(path, {"a": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def raw(path: Path, entries: dict[str, Any], size: int) -> Path:
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("entries", "size", "says"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "b overlap"),
        ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, 8, "overlap"),
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "b overlap others or leave a gap"),
        ({"a": entry(0, 8, [3])}, 8, "a do not fit its shape"),
        ({"a": entry(0, 8, [2])}, 4, "should be"),
        ({"a": entry(0, 8, [2])}, 12, "should be"),
        ({"a": entry(0, 8, [-1, -2])}, 8, "no JSON of the format"),
        ({"a": entry(8, 0, [2])}, 8, "overlap"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "no JSON of the format"),
        ({"a": entry(0, 8, [1 << 62, 1 << 62])}, 8, "do not fit its shape"),
    ],
)
def test_headers_that_do_not_cover_the_file_once_are_refused(
    tmp_path: Path, entries: dict[str, Any], size: int, says: str
) -> None:
    with pytest.raises(WeightsError, match=says):
        read_header(raw(tmp_path / "file.safetensors", entries, size))


def test_an_unknown_format_of_numbers_is_named(tmp_path: Path) -> None:
    path = raw(tmp_path / "file.safetensors", {"a": entry(0, 8, [2], "F4")}, 8)
    with TensorFile(path) as file, pytest.raises(WeightsError, match="format F4"):
        file.read("a")


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    with TensorFile(path) as file:
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(WeightsError, match="ends too early"):
            file.read("a")


def test_finite_numbers_are_told_from_others() -> None:
    assert is_finite(torch.full((3,), 3e38))  # whose sum is not
    assert is_finite(torch.full((3,), 1e300, dtype=torch.float64))
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.ones(4).to(torch.float8_e4m3fn))
    for bad in (float("nan"), float("inf"), float("-inf")):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            tensor = torch.zeros(1 << 20 | 3, dtype=dtype)
            tensor[-1] = bad
            assert not is_finite(tensor)
    assert not is_finite(torch.tensor([float("inf"), float("-inf")]))
    assert not is_finite(torch.tensor([float("nan")]).to(torch.float8_e4m3fn))
