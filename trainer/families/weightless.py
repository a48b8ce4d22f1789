"""A base model of which only the shapes are asked: its networks come without a file being read."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from trainer.families.auto import Auto
from trainer.families.networks import empty_network
from trainer.families.published import clip_tokenizer, published_configs
from trainer.families.quantising import Quantiser
from trainer.families.sd1 import Sd1
from trainer.families.source import ModelFacts, Part, WeightsSource
from trainer.families.stable_diffusion import StableDiffusionFamily, StableDiffusionSettings

_NOWHERE = torch.device("meta")  # where tensors have shapes alone


class Weightless(WeightsSource):
    """The same base as `source`, its weights being shapes without numbers, on torch's device `meta`."""

    def __init__(self, source: WeightsSource) -> None:
        """Nothing is made yet.

        Args:
            source: the base that would be loaded; its configurations alone are read.
        """
        self._source = source
        self.where, self.facts, self.revision = source.where, source.facts, source.revision

    @override
    def check(self) -> None:
        self._source.check()

    @override
    def config(self, part: Part | Literal["scheduler"]) -> dict[str, Any]:
        return self._source.config(part)

    @override
    def load(self, part: Part, dtype: torch.dtype, quantiser: Quantiser | None = None) -> nn.Module:
        """See `WeightsSource.load`; all its tensors but buffers are on the device `meta`."""
        network = empty_network(part, self.config(part), self.where)
        quantised = {} if quantiser is None else replace(quantiser, device=_NOWHERE).begin(network)
        for layer in quantised.values():
            layer.take(torch.empty(layer.out_features, layer.in_features, dtype=dtype, device=_NOWHERE))
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                # convolutions as they will lie, so that nothing is made twice
                form = torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
                filled = torch.empty(parameter.shape, dtype=dtype, memory_format=form, device=_NOWHERE)
                setattr(module, name, nn.Parameter(filled, requires_grad=False))
        return network.eval().requires_grad_(requires_grad=False)

    @override
    def tokenizer(self, part: Literal["tokenizer", "tokenizer_2"] = "tokenizer") -> Path:
        return self._source.tokenizer(part)

    @override
    def digest(self, part: Part | Literal["tokenizer", "tokenizer_2"]) -> str:
        return self._source.digest(part)


def without_weights(settings: StableDiffusionSettings) -> StableDiffusionFamily:
    """The same settings, whose model has shapes alone: load it on the device `meta`.

    Raises:
        WeightsError: of `auto`, the weights are of no family that is known.
    """
    family = settings.found if isinstance(settings, Auto) else settings
    if not isinstance(family, StableDiffusionFamily):
        raise TypeError(f"{type(family).__name__} is no family")
    kind: Any = type(family)  # a class that is known only now has no type

    class Opened(kind):
        def open(self) -> WeightsSource:
            return Weightless(super().open())

    return Opened(**{name: getattr(family, name) for name in kind.model_fields})


class _Published(WeightsSource):
    """What is published of Stable Diffusion 1.5: configurations, and no weights."""

    def __init__(self) -> None:
        self.where = "Stable Diffusion 1.5"
        self.facts = ModelFacts(family="sd1", prediction="epsilon", precision="float16")

    @override
    def check(self) -> None:
        """There is nothing that could be broken."""

    @override
    def config(self, part: Part | Literal["scheduler"]) -> dict[str, Any]:
        return published_configs("sd1", "epsilon")[part]

    @override
    def load(self, part: Part, dtype: torch.dtype, quantiser: Quantiser | None = None) -> nn.Module:
        raise TypeError("what is published has no weights")

    @override
    def tokenizer(self, part: Literal["tokenizer", "tokenizer_2"] = "tokenizer") -> Path:
        return clip_tokenizer("<|endoftext|>")

    @override
    def digest(self, part: Part | Literal["tokenizer", "tokenizer_2"]) -> str:
        raise TypeError("what is published has no weights")


class _PublishedSd1(Sd1):
    @override
    def open(self) -> WeightsSource:
        return _Published()


def published_sd1() -> Sd1:
    """Stable Diffusion 1.5 as it is published, for planning: what most models on the hub are like."""
    return _PublishedSd1(weights="Stable Diffusion 1.5")
