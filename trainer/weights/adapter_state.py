"""What every adapter is, whatever its kind: tensors and a number for each layer, and the change that they mean."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import printable
from trainer.weights.forms import Form, Roles, form_of
from trainer.weights.roles import DOWN, HADAMARD, KRONECKER, SCALE, UP

AdapterKind = Literal["lora", "loha", "lokr", "dora"]

_ROLES = (DOWN, UP, *HADAMARD, *KRONECKER, SCALE)


@dataclass(frozen=True, slots=True)
class AdapterState(ABC):
    """An adapter: for each layer some tensors and a number.

    A layer is `<part>.<path>`, such as `unet.mid_block.resnets.0.conv1`.
    """

    tensors: Mapping[str, Tensor]
    """`<layer>.<role>`, with the roles and shapes that the kind's form says."""
    alphas: Mapping[str, float]
    """By layer: the change is multiplied by alpha / rank. Without meaning where a layer has no rank."""

    kind: ClassVar[AdapterKind]
    _forms: ClassVar[tuple[Form, ...]]

    def layers(self) -> list[str]:
        """The layers, in the order of their names."""
        return sorted({_split(name)[0] for name in self.tensors})

    def roles(self, layer: str) -> dict[str, Tensor]:
        """The layer's tensors by their roles; empty where the adapter does not change it."""
        return {role: self.tensors[name] for role in _ROLES if (name := f"{layer}.{role}") in self.tensors}

    def rank(self, layer: str) -> int | None:
        """The rank of the layer's thin matrices; None where its factors are whole."""
        roles = self.roles(layer)
        return form_of(roles).rank(roles)

    def scale(self, layer: str) -> float:
        """What the layer's product is multiplied by."""
        roles = self.roles(layer)
        return form_of(roles).scale(roles, self.alphas[layer])

    def change(self, layer: str, weight: Tensor | None = None) -> Tensor:
        """The change of the layer's weight, float32.

        Args:
            layer: one of `layers()`.
            weight: of the base, [out in] or [out in k k]; its shape is taken, and a DoRA needs its numbers.

        Returns:
            In the weight's shape; without one as the tensors tell it: LoRA [out in] or [out in k k], others [out
            inner].

        Raises:
            WeightsError: the weight has another size, or is missing where it is needed.
        """
        roles = {role: tensor.detach().float() for role, tensor in self.roles(layer).items()}
        form = form_of(roles)
        product = form.product(roles) * form.scale(roles, self.alphas[layer])
        if weight is not None:
            return _shaped(layer, product, weight.shape)
        return product.reshape(product.shape[0], *roles[DOWN].shape[1:]) if DOWN in roles else product

    def norm(self, layer: str) -> float:
        """The Frobenius norm of the layer's change, in double precision; of a DoRA, of its change of direction."""
        roles = self.roles(layer)
        form = form_of(roles)
        return abs(form.scale(roles, self.alphas[layer])) * form.norm(roles)

    def check(self) -> None:
        """Make sure that every layer is whole and its tensors fit together.

        Raises:
            WeightsError: a half or an alpha is missing, a tensor is unknown, of a wrong shape or of a wrong dtype, or a
                rank is greater than its layer.
        """
        layers = self.layers()
        for layer in layers:
            roles = self.roles(layer)
            if form_of(roles) not in self._forms:
                raise WeightsError(f"This layer is no {self.kind}.", where=layer)
            self._check_layer(layer, roles)
            if layer not in self.alphas:
                raise WeightsError("This adapted layer has no alpha.", where=layer)
        foreign = sorted(set(self.alphas) - set(layers))
        if foreign:
            raise WeightsError("There is an alpha without an adapted layer.", where=printable(foreign[0][:200]))

    def _check_layer(self, layer: str, roles: Roles) -> None:
        """That no role is foreign to the kind, and the form's own check."""
        if SCALE in roles:
            raise WeightsError("This layer is that of a DoRA, with magnitudes of its own.", where=layer)
        form_of(roles).check(layer, roles)


def _split(name: str) -> tuple[str, str]:
    """Layer and role.

    Raises:
        WeightsError: the tensor has no role in any adapter.
    """
    for role in _ROLES:
        if name.endswith(f".{role}"):
            return name[: -len(role) - 1], role
    raise WeightsError("This tensor belongs to no adapted layer.", where=printable(name[:200]))


def _shaped(layer: str, product: Tensor, shape: torch.Size) -> Tensor:
    """[out inner] in the weight's shape; 1x1 convolutions and linear layers are the same numbers."""
    if len(shape) < 2 or product.shape[0] != shape[0] or product.numel() != shape.numel():
        raise WeightsError(
            f"This adapter's change is {list(product.shape)}, and the layer's weight is {list(shape)}.",
            where=layer,
            mend="Make sure that the adapter belongs to this base model.",
        )
    return product.reshape(shape)
