"""LoHa: the entrywise product of two LoRAs beside each chosen layer."""

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import override

from trainer.adapters.parts import Target
from trainer.adapters.products import ProductAdapter
from trainer.adapters.sizes import Size
from trainer.weights.adapter_state import AdapterKind


class Loha(ProductAdapter):
    """The entrywise product of two thin products beside each chosen layer: a rank of up to rank squared.

    Source: Hyeon-Woo et al. 2022, arXiv:2108.06098, equation 2.
    """

    kind: Literal["loha"] = "loha"

    @property
    @override
    def file_kind(self) -> AdapterKind:
        return "loha"

    @override
    def config(self, target: Target, sizes: Mapping[str, Size]) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(**self.arguments(target, sizes))
