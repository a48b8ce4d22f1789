"""PiSSA and OLoRA: a LoRA that begins at directions of the base's own weight instead of at zero."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.weights.low_rank import spectrum_of_matrix

Initial = Literal["random", "principal", "orthogonal"]
DOWN, UP = "origin_down", "origin_up"


class Origin:
    """Two matrices A0 and B0 at which a layer's LoRA begins; what is trained is how far it has gone from there.

    The papers part a weight in two, W = (W - s B0 A0) + s B0 A0, and train B A from B0 A0 on. With A = A0 + a and
    B = B0 + b, the whole is W + s (B0 a + b (A0 + a)). So a and b are trained, from zero, and W stays as it is: the
    gradients are the same; nothing is rounded in a 16-bit weight, and none is quantised anew; without the adapter the
    model is the base; and what is exported is a plain LoRA of twice the rank, without a difference of large numbers.
    Weight decay draws towards the origin.

    Source: Meng et al. 2024, arXiv:2404.02948, equations 2 to 5 (principal: the greatest singular values and their
    vectors); Büyükakyüz 2024, arXiv:2406.01775, algorithm 1 (orthogonal: the first columns of a QR decomposition).
    """

    def __init__(self, layer: Any, adapter: str, initial: Literal["principal", "orthogonal"]) -> None:
        """Hooked into a LoRA layer of peft's, which is silent now.

        Args:
            layer: of peft, which has no public type for it.
            adapter: its name there.
            initial: where to begin.
        """
        self._layer = layer
        self._moved: Tensor | None = None  # a x, of this forward pass
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        begin = _principal if initial == "principal" else _orthogonal
        first, second = begin(layer.base_layer.weight.detach(), down.weight.shape[0], float(layer.scaling[adapter]))
        for name, half, like in ((DOWN, first, down.weight), (UP, second, up.weight)):
            layer.register_buffer(name, half.reshape(like.shape).to(like.device, torch.float32), persistent=False)
            nn.init.zeros_(like)
        down.register_forward_hook(self._after_down)
        up.register_forward_hook(self._after_up)

    def _after_down(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._moved = output
        return output + _product(module, inputs[0], self._layer.origin_down)

    def _after_up(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        moved, self._moved = self._moved, None
        if moved is None:
            raise RuntimeError("peft has asked the second half of a LoRA before the first.")
        return output + _product(module, moved, self._layer.origin_up)


def joined(down: Tensor, up: Tensor, origin_down: Tensor, origin_up: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves, of twice the rank, of what has been trained beside an origin, at the same scale."""
    return torch.cat([down, origin_down + down]), torch.cat([origin_up, up], dim=1)


def _product(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """What the module would make of the inputs with this weight."""
    if isinstance(module, nn.Conv2d):
        return functional.conv2d(inputs, weight, None, module.stride, module.padding, module.dilation, module.groups)
    return functional.linear(inputs, weight)


def _principal(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A0 [rank inner] and B0 [out rank], whose product is the weight's greatest part."""
    up, down = spectrum_of_matrix(weight.flatten(1), rank).halves(rank)
    return down / scaling**0.5, up / scaling**0.5


def _orthogonal(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """R [rank inner] and Q [out rank] of the weight's QR decomposition, which the first columns alone decide."""
    matrix = weight.float().flatten(1)
    up = torch.linalg.qr(matrix[:, :rank]).Q
    return up.T @ matrix, up
