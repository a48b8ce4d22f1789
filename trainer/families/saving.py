"""A whole model out of memory: the networks that were trained as they are now, the others as they lie on disk."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from trainer.core.files import flush_to_disk
from trainer.core.shards import gathered
from trainer.families.model import DiffusionModel
from trainer.families.source import Part, WeightsSource
from trainer.weights.checkpoint import write_checkpoint, write_folder
from trainer.weights.original_names import PARTS


def save_whole(
    path: Path,
    model: DiffusionModel,
    trained: Mapping[str, nn.Module],
    metadata: Mapping[str, str],
    dtype: torch.dtype,
) -> Path:
    """Write a model, read it back and compare; besides it, memory holds one network that was not trained.

    Args:
        path: of a .safetensors file: one file in the original layout; else of a folder in diffusers' layout. What lies
            there stays until the new one is whole.
        model: whose base and scheduler it is.
        trained: networks by part, with the values to be written; of those that are shared among processes, all others
            `lend` the state, in the same order.
        metadata: for the file's header; a folder has no place for them.
        dtype: of the file.

    Returns:
        `path`.

    Raises:
        NonFiniteError: a weight is NaN or infinite, or too large for `dtype`.
        WeightsError: the layout cannot say it, or the disk gave back something else.
    """
    source, family = model.source, model.family
    shelf = _Shelf(source, dtype)
    live = {part: gathered(network.state_dict()) for part, network in trained.items()}
    parts: dict[Part, Mapping[str, Tensor]] = {
        part: live[part] if part in live else _Tensors(partial(shelf.tensors, part)) for part in PARTS[family]
    }
    configs = {part: source.config(part) for part in PARTS[family]} | {"scheduler": model.scheduler_config()}
    if path.suffix == ".safetensors":
        write_checkpoint(path, family, parts, configs, metadata, dtype)
        return path
    names: tuple[Literal["tokenizer", "tokenizer_2"], ...] = ("tokenizer", "tokenizer_2")
    tokenizers = {name: source.tokenizer(name) for name in names[: len(model.text_parts)]}
    fresh, old = (path.with_name(f".{path.name}.{mark}") for mark in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed while it wrote
    write_folder(fresh, family, parts, configs, tokenizers, dtype)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    fresh.rename(path)
    flush_to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)
    return path


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a network, wherever it is when one of them is asked for."""

    def __init__(self, network: Callable[[], Mapping[str, Tensor]]) -> None:
        self._network = network

    @override
    def __getitem__(self, name: str) -> Tensor:
        return self._network()[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._network())

    @override
    def __len__(self) -> int:
        return len(self._network())


class _Shelf:
    """Holds one network that was read from the disk: writers ask for the tensors of one after those of another."""

    def __init__(self, source: WeightsSource, dtype: torch.dtype) -> None:
        self._source = source
        self._dtype = dtype
        self._held: tuple[str, Mapping[str, Tensor]] = "", {}

    def tensors(self, part: Part) -> Mapping[str, Tensor]:
        """Of one network, which is held from now on; the one before is not any more."""
        if self._held[0] != part:
            self._held = "", {}  # gone before the next one comes
            self._held = part, self._source.load(part, self._dtype).state_dict()
        return self._held[1]
