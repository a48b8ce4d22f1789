"""The tensors of a LoRA in our own names, and what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import printable

DOWN = ".lora_A.weight"
UP = ".lora_B.weight"
_FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}


@dataclass(frozen=True, slots=True)
class LoraState:
    """A LoRA: for each layer two matrices and a number.

    A layer is `<part>.<path>`, such as `unet.mid_block.resnets.0.conv1`. Its change of weight is
    alpha / rank * up @ down.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """

    tensors: Mapping[str, Tensor]
    """`<layer>.lora_A.weight` (down: [rank in] or [rank in k k]) and `<layer>.lora_B.weight` (up: [out rank] or
    [out rank 1 1]), in the shapes of peft."""
    alphas: Mapping[str, float]  # by layer

    def layers(self) -> list[str]:
        """The layers, in the order of their names."""
        return sorted({name.removesuffix(DOWN).removesuffix(UP) for name in self.tensors})

    def down(self, layer: str) -> Tensor:
        """[rank in] or [rank in k k]."""
        return self.tensors[layer + DOWN]

    def up(self, layer: str) -> Tensor:
        """[out rank] or [out rank 1 1]."""
        return self.tensors[layer + UP]

    def scale(self, layer: str) -> float:
        """What up @ down is multiplied by."""
        return self.alphas[layer] / self.down(layer).shape[0]

    def change(self, layer: str) -> Tensor:
        """The change of the layer's weight, float32, in the weight's own shape [out in] or [out in k k]."""
        up, down = self.up(layer).float(), self.down(layer).float()
        return (self.scale(layer) * (up.flatten(1) @ down.flatten(1))).reshape(up.shape[0], *down.shape[1:])

    def check(self) -> None:
        """Make sure that every layer is whole and its tensors fit together.

        Raises:
            WeightsError: a half or an alpha is missing, a tensor is unknown, of a wrong shape or of a wrong dtype.
        """
        for name in self.tensors:
            if not name.endswith((DOWN, UP)):
                raise WeightsError("This tensor belongs to no LoRA layer.", where=printable(name[:200]))
        layers = self.layers()
        for layer in layers:
            for half in (DOWN, UP):
                if layer + half not in self.tensors:
                    raise WeightsError("Half of a LoRA layer is missing.", where=layer + half)
            if layer not in self.alphas:
                raise WeightsError("This LoRA layer has no alpha.", where=layer)
            check_pair(layer, self.down(layer), self.up(layer))
        foreign = sorted(set(self.alphas) - set(layers))
        if foreign:
            raise WeightsError("There is an alpha without a LoRA layer.", where=foreign[0])


def check_pair(layer: str, down: Tensor, up: Tensor) -> None:
    """Make sure that the halves of one layer fit each other.

    Raises:
        WeightsError: shapes or dtypes are not those of a linear layer's or a convolution's LoRA.
    """
    if down.dtype not in _FLOATS or up.dtype not in _FLOATS:
        raise WeightsError(f"LoRA weights must be floats, and these are {down.dtype} and {up.dtype}.", where=layer)
    linear = down.ndim == 2 and up.ndim == 2
    convolution = down.ndim == 4 and up.ndim == 4 and up.shape[2:] == (1, 1)
    if not (linear or convolution) or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise WeightsError(
            f"The shapes {list(down.shape)} and {list(up.shape)} are not the two halves of a LoRA.", where=layer
        )
