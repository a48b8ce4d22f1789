"""DoRA: direction and length of a weight are trained apart."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.adapters.chances import ModuleDropout

Axis = Literal["inputs", "outputs"]
PARAMETER = "dora_scale"  # as files call it


class Magnitudes:
    """The lengths of one layer's columns (inputs) or rows (outputs), trained beside its LoRA.

    The new weight is length * (W + change) / norm(W + change), and the norm gets no gradient. A factor on the columns
    of a weight is one on its inputs, and a factor on its rows one on its outputs: so the layer stays what it is, also
    where its weight is quantised.

    Source: Liu et al. 2024, arXiv:2402.09353, equation 5, and section 4.3 on the gradient of the norm.
    """

    def __init__(self, layer: Any, adapter: str, axis: Axis, dropout: ModuleDropout | None) -> None:
        """Hooked into a LoRA layer of peft's, the lengths those of the base's weight.

        Args:
            layer: of peft, which has no public type for it; its change is still zero.
            adapter: its name there.
            axis: what the lengths belong to.
            dropout: of the whole layer, hooked before.
        """
        self.strength = 1.0
        self._axis, self._dropout = axis, dropout
        self._layer, self._adapter = layer, adapter
        self._scaling = float(layer.scaling[adapter])
        self._gain: Tensor | None = None  # of this forward pass
        layer.register_parameter(PARAMETER, nn.Parameter(self._norm()))
        if axis == "inputs":
            layer.base_layer.register_forward_pre_hook(self._before_base)
            layer.lora_A[adapter].register_forward_pre_hook(self._before_down)
        else:
            layer.base_layer.register_forward_hook(self._after_base)
            layer.lora_B[adapter].register_forward_hook(self._after_up)

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """Of W + change: [1 in] or [out 1], of a convolution [1 in 1 1] or [out 1 1 1]; float32."""
        weight = self._layer.base_layer.weight
        with torch.autocast(weight.device.type, enabled=False):
            up: Tensor = self._layer.lora_B[self._adapter].weight
            down: Tensor = self._layer.lora_A[self._adapter].weight
            moved = weight.float() + (self._scaling * (up.flatten(1) @ down.flatten(1))).view(weight.shape)
        kept = 1 if self._axis == "inputs" else 0
        return torch.linalg.vector_norm(moved, dim=[axis for axis in range(moved.ndim) if axis != kept], keepdim=True)

    def _new_gain(self) -> Tensor:
        """Length by norm, in the shape that multiplies activations: [in] or [out], of a convolution [1 .. 1 1]."""
        lengths: Tensor = self._layer.dora_scale
        gain = lengths / self._norm().clamp_min(torch.finfo(torch.float32).tiny)
        self._gain = gain.view(1, -1, 1, 1) if gain.ndim == 4 else gain.flatten()
        return self._gain

    def _excess(self) -> Tensor:
        """The gain less 1, as far as it acts."""
        excess = (self._new_gain() - 1.0) * self.strength
        kept = None if self._dropout is None else self._dropout.kept
        return excess if kept is None else excess * kept

    def _before_base(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = inputs[0]
        return ((first + first * self._excess()).to(first.dtype), *inputs[1:])

    def _before_down(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self._scaled(inputs[0]), *inputs[1:])

    def _after_base(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        bias: Tensor | None = self._layer.base_layer.bias
        turned = output
        if bias is not None:  # it is no part of the weight
            turned = output - (bias.view(1, -1, 1, 1) if isinstance(module, nn.Conv2d) else bias)
        return (output + turned * self._excess()).to(output.dtype)

    def _after_up(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self._scaled(output)

    def _scaled(self, activations: Tensor) -> Tensor:
        gain, self._gain = self._gain, None  # not kept: it holds the graph of this pass
        if gain is None:
            raise RuntimeError("peft has asked a LoRA layer's adapter before its base.")
        return (activations * gain).to(activations.dtype)
