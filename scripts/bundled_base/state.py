"""The training state on disk, in safetensors and JSON, so that reading it back can run no code."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class Progress:
    """How far a training has come."""

    steps: int = 0
    samples: int = 0
    minutes: float = 0.0


def pack_optimizer(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state under flat names."""
    states = optimizer.state_dict()["state"]
    return {
        f"{name}/{index}/{key}": torch.as_tensor(value)
        for index, entries in states.items()
        for key, value in entries.items()
    }


def unpack_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors that `pack_optimizer` named back into an optimizer over the same parameters."""
    states: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        owner, _, rest = path.partition("/")
        if owner == name:
            index, _, key = rest.partition("/")
            states.setdefault(int(index), {})[key] = tensor
    packed = optimizer.state_dict()
    packed["state"] = states
    optimizer.load_state_dict(packed)


def save_state(folder: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Write tensors and progress so that a crash at any moment leaves the old state or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "state.safetensors.new"
    # progress travels in the file's own header: two files could not be replaced in one stroke
    written = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(written, fresh, metadata={"progress": json.dumps(asdict(progress))})
    fresh.replace(folder / "state.safetensors")


def load_state(folder: Path) -> tuple[dict[str, Tensor], Progress] | None:
    """Return what `save_state` wrote, or None where nothing was written yet."""
    path = folder / "state.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return load_file(path), Progress(**json.loads(metadata["progress"]))
