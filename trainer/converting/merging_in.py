"""Adapters merged into a base model on disk, tensor by tensor; what they do not change is copied as it is."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from trainer.converting.opened_base import OpenedBase
from trainer.core.errors import RecipeError, WeightsError
from trainer.core.progress import Phases
from trainer.core.tensor_files import TensorFile, planned, write_tensor_file
from trainer.core.tensors import DTYPES, TensorFacts, is_pickle
from trainer.weights.forms import form_of
from trainer.weights.merging import Weighted, merged_weight, owners_of
from trainer.weights.stored_model import StoredModel

_EIGHT_BITS = frozenset({"F8_E4M3", "F8_E5M2"})


class MergedBase(StoredModel):
    """A base model as it is with adapters; each weight is changed when it is read."""

    def __init__(self, base: OpenedBase, adapters: Sequence[Weighted], dtype: torch.dtype | None) -> None:
        """Nothing is read yet.

        Args:
            base: open for reading, as long as this is used.
            adapters: of its family.
            dtype: of every number with a point; None leaves each as it is stored.

        Raises:
            WeightsError: an adapter changes a layer that the base does not have, or of another size.
            RecipeError: the base's numbers have 8 bits, and no other format is asked for.
        """
        self.base = base
        self.where = base.where
        self.dtype = dtype
        self.acting = {f"{layer}.weight": acting for layer, acting in owners_of(adapters).items() if acting}
        self.tensors = {name: self.facts(facts) for name, facts in base.tensors.items()}
        if not self.acting:
            raise WeightsError(
                "These adapters change nothing.", mend="Give each a strength, as in file.safetensors:0.7."
            )
        self._check_fit()
        if dtype is None and any(facts.dtype in _EIGHT_BITS for facts in base.tensors.values()):
            raise RecipeError(
                "The base's numbers have 8 bits, which is too coarse for the changes of an adapter.",
                where=base.where,
                mend="Give --dtype float16 or bfloat16.",
            )

    @override
    def read(self, name: str) -> Tensor:
        tensor = self.base.read(name)
        dtype = self._dtype(tensor.dtype)
        if name in self.acting:
            return merged_weight(name.removesuffix(".weight"), tensor, self.acting[name], dtype)
        return tensor.to(dtype)

    def facts(self, stored: TensorFacts) -> TensorFacts:
        """What a stored tensor becomes."""
        if stored.dtype not in DTYPES:
            return stored
        return planned(self._dtype(DTYPES[stored.dtype]), stored.shape)

    def _dtype(self, stored: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and stored.is_floating_point else stored

    def _check_fit(self) -> None:
        for name, acting in self.acting.items():
            layer = name.removesuffix(".weight")
            for one in acting:
                if name not in self.base.tensors:
                    raise _misfit(one.name, layer, "the base model does not have it")
                shape, roles = self.base.tensors[name].shape, one.adapter.roles(layer)
                size = form_of(roles).size(roles)
                if size != (shape[0], math.prod(shape[1:])):
                    raise _misfit(one.name, layer, f"the adapter's is {list(size)}, and the base's {list(shape)}")


@dataclass(frozen=True, slots=True)
class _File:
    """One file of weights, on its way into another."""

    source: TensorFile
    merged: MergedBase
    names: Mapping[str, Sequence[str]]  # key -> our names of what lies there

    def plan(self) -> dict[str, TensorFacts]:
        return {key: self.merged.facts(facts) for key, facts in self.source.header.tensors.items()}

    def tensor(self, key: str) -> Tensor:
        """What the new file holds at `key`."""
        stored = self.source.read(key)
        found = stored.to(DTYPES[self.plan_of(key).dtype])
        for name in self.names.get(key, ()):
            if name in self.merged.acting:
                place, where = self.merged.base.places[name]
                rows = where.rows(place) or slice(None)
                part = stored[rows]
                layer = name.removesuffix(".weight")
                changed = merged_weight(layer, where.as_ours(part, place), self.merged.acting[name], found.dtype)
                found[rows] = where.as_stored(changed, part.shape)
        return found

    def plan_of(self, key: str) -> TensorFacts:
        return self.merged.facts(self.source.header.tensors[key])


def write_merged_file(merged: MergedBase, source: Path, path: Path, metadata: Mapping[str, str], tell: Phases) -> None:
    """Write a file of the base's weights with the adapters in it, under the same keys, and read it back.

    Args:
        merged: the model.
        source: one of the base's files.
        path: of the new file.
        metadata: of the new file.
        tell: is told of the progress.

    Raises:
        NonFiniteError: a weight is not finite, or overflows.
        WeightsError: the base is broken, or the disk gave back something else.
    """
    names: dict[str, list[str]] = {}
    for name, (_, stored) in merged.base.places.items():
        if stored.file == source:
            names.setdefault(stored.key, []).append(name)
    with TensorFile(source) as opened:
        file = _File(opened, merged, names)
        plan = file.plan()
        done = 0

        def tensor_of(key: str) -> Tensor:
            nonlocal done
            done += 1
            tell(f"merging {source.name}", done, len(plan))
            return file.tensor(key)

        write_tensor_file(path, plan, tensor_of, metadata)


def write_merged_folder(
    merged: MergedBase, source: Path, folder: Path, said: Mapping[str, str], tell: Phases
) -> tuple[str, ...]:
    """Fill a new folder with the base's files, its weights with the adapters in them.

    Args:
        merged: the model.
        source: the base's folder.
        folder: the new one, empty.
        said: metadata for the files in which something changes, beside their own.
        tell: is told of the progress.

    Returns:
        The files that were left behind, by their paths in the folder: pickles, and weights that are not used.

    Raises:
        NonFiniteError: a weight is not finite, or overflows.
        WeightsError: the base is broken, or the disk gave back something else.
    """
    ours = {stored.file for _, stored in merged.base.places.values()}
    parts = {file.parent for file in ours}
    behind: list[str] = []
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        inner = file.relative_to(source)
        if any(word.startswith(".") for word in inner.parts):
            continue
        target = folder / inner
        target.parent.mkdir(parents=True, exist_ok=True)
        if file in ours:
            with TensorFile(file) as opened:
                metadata = dict(opened.header.metadata)
            changed = any(merged.base.places[name][1].file == file for name in merged.acting)
            write_merged_file(merged, file, target, {**metadata, **said} if changed else metadata, tell)
        elif is_pickle(file) or (file.suffix == ".safetensors" and file.parent in parts):
            behind.append(inner.as_posix())
        else:
            shutil.copyfile(file, target)
    return tuple(behind)


def _misfit(name: str, layer: str, why: str) -> WeightsError:
    return WeightsError(
        f"{name} changes a layer that does not fit: {why}.",
        where=layer,
        mend="Make sure that adapter and base are of one family and size.",
    )
