"""A trained state -> a file that other tools read."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.core.device import Precision
from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.files import replacing
from trainer.core.settings import Settings
from trainer.core.tensors import first_non_finite, read_header, read_tensors
from trainer.weights.lora_state import DOWN, UP, LoraState
from trainer.weights.metadata import TrainingFacts, as_metadata, hashes_of
from trainer.weights.names import Naming


class ExportSettings(Settings):
    """How the result is written."""

    precision: Precision = Precision.float32
    """float32 writes exactly what was trained; float16 or bfloat16 halve the file and round each weight."""


def export(path: Path, state: LoraState, naming: Naming, facts: TrainingFacts, settings: ExportSettings) -> None:
    """Write a LoRA in kohya's layout, which diffusers, ComfyUI, Forge, A1111 and sd-scripts all load.

    When this returns, the file has been read back and holds these tensors. Equal states and facts give equal bytes.

    Args:
        path: ends in .safetensors; an old file there stays until the new one is whole and checked.
        state: any floats; on any device and in any memory format.
        naming: of the family.
        facts: what the file says of itself.
        settings: the number format.

    Raises:
        NonFiniteError: a weight is NaN or infinite, or overflows in the number format asked for.
        WeightsError: the state is no whole LoRA of this family, or the disk gave back something else.

    Source: the layout was measured in the five programs above.
    """
    tensors = to_kohya(state, naming, settings.precision.dtype)
    broken = first_non_finite(tensors)
    if broken is not None:
        raise NonFiniteError(
            f"A trained weight is not finite in {settings.precision.value}; nothing was written.",
            where=broken,
            mend="Export an earlier checkpoint, train with a lower rate, or export in float32.",
        )
    metadata = as_metadata(facts)
    metadata |= hashes_of(tensors, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(as_bytes(tensors, metadata))
        _check_written(temporary, tensors, metadata, path)


def to_kohya(state: LoraState, naming: Naming, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state's tensors under kohya's names, contiguous on the CPU.

    Raises:
        WeightsError: the state is no whole LoRA of this family.
    """
    state.check()
    if not state.tensors:
        raise WeightsError("There is nothing to export: no layer was trained.")
    tensors: dict[str, Tensor] = {}
    for layer in state.layers():
        name = naming.to_kohya(layer)
        tensors[f"{name}.lora_down.weight"] = _plain(state.tensors[layer + DOWN], dtype)
        tensors[f"{name}.lora_up.weight"] = _plain(state.tensors[layer + UP], dtype)
        # always float32: an alpha that 16 bits cannot hold would scale the whole layer wrongly
        tensors[f"{name}.alpha"] = torch.tensor(state.alphas[layer], dtype=torch.float32)
    return tensors


def as_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its header in a fixed order; the library shuffles the metadata anew in each process."""
    from safetensors.torch import save

    content = save(dict(tensors), metadata=dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    entries = {"__metadata__": dict(sorted(entries.pop("__metadata__").items())), **entries}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)  # the format asks that tensors begin at a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + content[start:]


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """On the CPU, row by row, and sharing memory with no other tensor, as safetensors asks."""
    return tensor.detach().to(device="cpu", dtype=dtype).clone(memory_format=torch.contiguous_format)


def _check_written(written: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Read the file back and compare it with what it should hold.

    Raises:
        WeightsError: it differs.
    """
    found = read_tensors(written)
    differing = sorted(found.keys() ^ tensors.keys()) + [
        name
        for name in found.keys() & tensors.keys()
        if found[name].dtype != tensors[name].dtype or not torch.equal(found[name], tensors[name])
    ]
    if differing or dict(read_header(written).metadata) != dict(metadata):
        raise WeightsError(
            f"What was written reads back differently: {differing[0] if differing else 'the metadata'}.",
            where=str(path),
            mend="The disk or the memory of this machine may be failing; write to another disk.",
        )
