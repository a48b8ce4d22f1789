"""A base model with LoRAs merged into it: to everybody who loads from it, just another base model."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from trainer.families.quantising import Quantiser
from trainer.families.source import Part, WeightsSource
from trainer.weights.adapter_digests import digest_of_adapter
from trainer.weights.adapter_state import AdapterState
from trainer.weights.base_loras import BaseLora, merge_into
from trainer.weights.merging import Weighted
from trainer.weights.names import Naming
from trainer.weights.reading import read_adapter


class MergedWeights(WeightsSource):
    """The weights of another source, changed by LoRAs each time that a network is loaded.

    So a network that is given back and comes again is the same; and a cache knows a changed text encoder by its digest.
    """

    def __init__(self, source: WeightsSource, loras: Sequence[BaseLora], naming: Naming) -> None:
        """Nothing is read yet.

        Args:
            source: the base model.
            loras: what is merged into it.
            naming: of its family.
        """
        self._source, self._loras, self._naming = source, tuple(loras), naming
        self.where, self.facts, self.revision = source.where, source.facts, source.revision

    @override
    def check(self) -> None:
        self._source.check()
        _ = self._parts

    @override
    def config(self, part: Part | Literal["scheduler"]) -> dict[str, Any]:
        return self._source.config(part)

    @override
    def load(self, part: Part, dtype: torch.dtype, quantiser: Quantiser | None = None) -> nn.Module:
        """See `WeightsSource.load`. What is quantised is the sum, so the whole network is in memory before.

        Raises:
            WeightsError: a LoRA is broken, of another family, or does not fit.
            NonFiniteError: a changed weight overflows in `dtype`.
        """
        network = self._source.load(part, dtype)
        changing = [lora for lora, parts in zip(self._loras, self._parts, strict=True) if part in parts]
        adapters = [Weighted(name=one.file.name, adapter=self._read(one), strength=one.strength) for one in changing]
        merge_into(network, part, self._naming, adapters)
        if quantiser is not None:
            quantiser.quantise(network)
        return network

    @override
    def tokenizer(self, part: Literal["tokenizer", "tokenizer_2"] = "tokenizer") -> Path:
        return self._source.tokenizer(part)

    @override
    def digest(self, part: Part | Literal["tokenizer", "tokenizer_2"]) -> str:
        own = self._source.digest(part)
        changes = [
            [digest_of_adapter(lora.file.expanduser()), lora.strength]
            for lora, parts in zip(self._loras, self._parts, strict=True)
            if part in parts
        ]
        return hashlib.sha256(json.dumps([own, changes]).encode("utf-8")).hexdigest() if changes else own

    @cached_property
    def _parts(self) -> tuple[frozenset[str], ...]:
        """Which networks each LoRA changes."""
        return tuple(frozenset(layer.partition(".")[0] for layer in self._read(one).layers()) for one in self._loras)

    def _read(self, lora: BaseLora) -> AdapterState:
        return read_adapter(lora.file.expanduser(), self._naming).state
