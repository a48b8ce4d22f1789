"""A trained state -> a file that other tools read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trainer.core.device import Precision
from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.files import replacing, write_atomically
from trainer.core.settings import Settings
from trainer.core.tensors import first_non_finite, read_header, read_tensors
from trainer.weights.adapter_state import AdapterState
from trainer.weights.layouts import Layout, to_diffusers, to_kohya, to_peft
from trainer.weights.metadata import TrainingFacts, as_metadata, hashes_of
from trainer.weights.names import Naming
from trainer.weights.network_facts import described
from trainer.weights.peft_configs import PEFT_CONFIG, PEFT_FILE
from trainer.weights.said_alphas import ADAPTER_METADATA

__all__ = ["ExportSettings", "as_bytes", "export", "export_adapter", "to_kohya", "write_checked"]


class ExportSettings(Settings):
    """How the result is written."""

    precision: Precision = Precision.float32
    """float32 writes exactly what was trained; float16 or bfloat16 halve the file and round each weight."""
    layout: Layout | Literal["folder"] = "kohya"
    """kohya is what diffusers, ComfyUI, Forge, A1111 and sd-scripts all load; of a whole model it is a single file in
    the original layout. diffusers is the same file in the names of diffusers alone. peft is a folder for
    PeftModel.from_pretrained, with one folder in it for each network. folder is a whole model as diffusers has it."""
    tag_counts: bool = False
    """Whether the file says in how many pictures each tag stands, as model managers show it. Whoever has the file can
    read them."""
    thumbnail: bool = False
    """Whether the file carries a small picture of what it does: the first prompt of the last previews."""

    def result(self, path: Path) -> Path:
        """What is written where `path` is asked for: the file, or a folder of the same name without its suffix."""
        folder = self.layout in ("peft", "folder")
        return path.with_suffix("") if folder and path.suffix == ".safetensors" else path


def export(path: Path, state: AdapterState, naming: Naming, facts: TrainingFacts, settings: ExportSettings) -> Path:
    """Write an adapter with what its training may say of it.

    When this returns, the file has been read back and holds these tensors. Equal states and facts give equal bytes.

    Args:
        path: ends in .safetensors; an old file there stays until the new one is whole and checked.
        state: any floats; on any device and in any memory format.
        naming: of the family.
        facts: what the file says of itself; kind, rank, alpha and trained networks are taken from the state.
        settings: the number format and the layout.

    Returns:
        The file; of the peft layout its folder, which is called as the file without .safetensors.

    Raises:
        NonFiniteError: a weight is NaN or infinite, or overflows in the number format asked for.
        WeightsError: the state is no whole adapter of this family, the layout cannot say it, or the disk gave back
            something else.

    Source: the layout was measured in the five programs that `ExportSettings` names.
    """
    return export_adapter(path, state, naming, as_metadata(described(facts, state)), settings)


def export_adapter(
    path: Path, state: AdapterState, naming: Naming, metadata: Mapping[str, str], settings: ExportSettings
) -> Path:
    """Write an adapter with metadata as they are, such as those of the file that it comes from; else as `export`.

    Hashes and diffusers' own entry are made anew.
    """
    dtype = settings.precision.dtype
    kept = {key: text for key, text in metadata.items() if not key.startswith("sshs_") and key != ADAPTER_METADATA}
    if settings.layout == "peft":
        folder = settings.result(path)
        pieces = to_peft(state, naming, dtype)
        for piece in pieces.values():
            _check_finite(piece.tensors, settings.precision)
        for part, piece in pieces.items():
            write_checked(folder / part / PEFT_FILE, piece.tensors, {**kept, "format": "pt"})
            write_atomically(folder / part / PEFT_CONFIG, json.dumps(piece.config, indent=2, sort_keys=True) + "\n")
        for part in naming.parts.keys() - pieces.keys():  # of an older adapter in this place
            for name in (PEFT_FILE, PEFT_CONFIG):
                (folder / part / name).unlink(missing_ok=True)
        return folder
    if settings.layout == "diffusers":
        tensors, own = to_diffusers(state, naming, dtype)
        kept |= own
    else:
        tensors = to_kohya(state, naming, dtype)
        kept.pop("format", None)
    _check_finite(tensors, settings.precision)
    write_checked(path, tensors, {**kept, **hashes_of(tensors, kept)})
    return path


def write_checked(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically and read it back before it takes its name.

    Raises:
        WeightsError: the disk gave back something else.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(as_bytes(tensors, metadata))
        _check_written(temporary, tensors, metadata, path)


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


def _check_finite(tensors: Mapping[str, Tensor], precision: Precision) -> None:
    broken = first_non_finite(tensors)
    if broken is not None:
        raise NonFiniteError(
            f"A trained weight is not finite in {precision.value}; nothing was written.",
            where=broken,
            mend="Export an earlier checkpoint, train with a lower rate, or export in float32.",
        )


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
