"""LoKr: a Kronecker product beside each chosen layer."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import PositiveInt
from typing_extensions import override

from trainer.adapters.parts import Target
from trainer.adapters.products import ProductAdapter
from trainer.adapters.sizes import Size
from trainer.weights.adapter_state import AdapterKind


class Lokr(ProductAdapter):
    """The Kronecker product of a small matrix and a larger one beside each chosen layer: the smallest files.

    Source: Yeh et al. 2023, arXiv:2309.14859, on LoKr.
    """

    kind: Literal["lokr"] = "lokr"
    factor: PositiveInt | None = None
    """The side of the small matrix, or the nearest that divides a layer's side. Absent: near the root of it, which
    makes the smallest files; 4 to 16 hold more."""
    decompose_both: bool = False
    """Whether the small matrix, too, is a product of two thin ones, where it is larger than twice the rank."""

    @property
    @override
    def file_kind(self) -> AdapterKind:
        return "lokr"

    @override
    def widest(self, width: int) -> int | None:
        return None  # where the rank is large, the factors are whole

    @override
    def config(self, target: Target, sizes: Mapping[str, Size]) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(
            **self.arguments(target, sizes),
            decompose_both=self.decompose_both,
            decompose_factor=-1 if self.factor is None else self.factor,
        )
