"""What an adapter does to a layer, as a product of two thin matrices where it is one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.weights.adapter_state import AdapterState
from trainer.weights.metadata import KnownFamily
from trainer.weights.roles import DOWN, UP

_CONVOLUTION = re.compile(r"unet\..*(?:\.resnets\.\d+\.conv[12]|samplers\.\d+\.conv)")
_KERNEL = 3 * 3
_SHORTCUT = re.compile(r"unet\..*\.conv_shortcut")
_PROJECTION = re.compile(r"unet\..*\.proj_(?:in|out)")


@dataclass(frozen=True, slots=True)
class Base:
    """What is known of the model that adapters belong to."""

    family: KnownFamily | None = None
    weight: Callable[[str], Tensor] | None = None
    """Gives a layer's weight, [out in] or [out in k k], by its canonical name; None where no base was named."""


@dataclass(frozen=True, slots=True)
class Product:
    """A change of weight as scale · up @ down."""

    up: Tensor  # [out rank], float32 or float64
    down: Tensor  # [rank in], the same, a convolution's kernel in the last axis
    scale: float
    shape: torch.Size  # of the weight: [out in] or [out in k k]

    @property
    def rank(self) -> int:
        """The rows of down."""
        return self.down.shape[0]

    @property
    def most(self) -> int:
        """The rank that a matrix of this size can have."""
        return min(self.up.shape[0], self.down.shape[1])


def product_of(adapter: AdapterState, layer: str, strength: float = 1.0) -> Product | None:
    """The change of a layer as a product; None where it is none: for LoHa, LoKr and DoRA."""
    roles = adapter.roles(layer)
    if set(roles) != {DOWN, UP}:
        return None
    up, down = roles[UP].detach().float(), roles[DOWN].detach().float()
    shape = torch.Size([up.shape[0], *down.shape[1:]])
    return Product(up.flatten(1), down.flatten(1), strength * adapter.scale(layer), shape)


def joined(products: Sequence[Product]) -> Product:
    """The sum of products as one, float64, at a scale of 1; its rank is the sum of theirs.

    Each half takes the root of its scale, so that 16 bits hold both equally well.
    """
    ups = [one.up.double() * (abs(one.scale) ** 0.5 * (1 if one.scale > 0 else -1)) for one in products]
    downs = [one.down.double() * abs(one.scale) ** 0.5 for one in products]
    return Product(torch.cat(ups, dim=1), torch.cat(downs), 1.0, products[0].shape)


def whole_change(adapter: AdapterState, layer: str, base: Base) -> Tensor:
    """The change of a layer's weight, built, float32, [out in] or [out in k k].

    Without the base's weights the shape is told by the tensors, the family and the layer's name.

    Raises:
        WeightsError: the adapter is a DoRA and there is no base; or the base's layer has another size.
    """
    if base.weight is not None:
        return adapter.change(layer, base.weight(layer))
    if adapter.kind == "dora":
        raise WeightsError(
            "What a DoRA changes depends on the base model's weights.",
            where=layer,
            mend="Name the base model that it was trained on with --base.",
        )
    change = adapter.change(layer)
    return change if change.ndim == 4 else change.reshape(_shape(layer, change.shape, base.family))


def _shape(layer: str, flat: torch.Size, family: KnownFamily | None) -> list[int]:
    """The shape of a layer's weight by its name, for kinds whose tensors do not tell a kernel."""
    out, inner = flat
    if _CONVOLUTION.fullmatch(layer) and inner % _KERNEL == 0:
        return [out, inner // _KERNEL, 3, 3]
    pointwise = _SHORTCUT.fullmatch(layer) or (family == "sd1" and _PROJECTION.fullmatch(layer))
    return [out, inner, 1, 1] if pointwise else [out, inner]
