"""LoHa: the entrywise product of two LoRAs beside each chosen layer."""

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import override

from trainer.adapters.parts import Target
from trainer.adapters.products import ProductAdapter
from trainer.adapters.sizes import Size, numbers
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

        found = numbers(sizes)
        return LoHaConfig(
            target_modules=list(target.layers),
            r=found.rank,
            # peft annotates alphas as integers and only ever divides them
            alpha=found.alpha,  # pyright: ignore[reportArgumentType]
            rank_pattern=dict(found.ranks),
            alpha_pattern=dict(found.alphas),
            rank_dropout=self.rank_dropout,
            module_dropout=self.module_dropout,
            use_effective_conv2d=self.effective_convolution,
        )
