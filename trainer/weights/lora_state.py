"""The tensors of a LoRA in our own names, and what they mean."""

from typing import ClassVar

from torch import Tensor

from trainer.weights import roles
from trainer.weights.adapter_state import AdapterKind, AdapterState
from trainer.weights.forms import PAIR, Form

DOWN = f".{roles.DOWN}"
UP = f".{roles.UP}"


class LoraState(AdapterState):
    """A LoRA: for each layer two matrices and a number.

    Tensors are `<layer>.lora_A.weight` (down: [rank in] or [rank in k k]) and `<layer>.lora_B.weight` (up: [out rank]
    or [out rank 1 1]), in the shapes of peft. The change of weight is alpha / rank * up @ down.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """

    __slots__ = ()

    kind: ClassVar[AdapterKind] = "lora"
    _forms: ClassVar[tuple[Form, ...]] = (PAIR,)

    def down(self, layer: str) -> Tensor:
        """[rank in] or [rank in k k]."""
        return self.tensors[layer + DOWN]

    def up(self, layer: str) -> Tensor:
        """[out rank] or [out rank 1 1]."""
        return self.tensors[layer + UP]
