"""What a LoRA layer leaves out at random while it is trained.

Chance comes from torch's own generator, on the device of the inputs: the loop seeds it for every batch, so a resumed
run leaves out the same. In evaluation mode nothing is left out.
"""

from typing import Any

import torch
from torch import Tensor, nn


class ModuleDropout:
    """In a share of the steps, the layer's adapter is not there at all.

    Source: sd-scripts' `module_dropout`; there, too, nothing is scaled up for it.
    """

    def __init__(self, layer: Any, adapter: str, share: float) -> None:
        """Hooked into a LoRA layer of peft's.

        Args:
            layer: of peft, which has no public type for it.
            adapter: its name there.
            share: of the steps, 0 .. 1.
        """
        self._layer, self._share = layer, share
        self.kept: Tensor | None = None  # [], 1 or 0, of this forward pass; None: everything is there
        layer.base_layer.register_forward_pre_hook(self._draw)  # peft asks the base first
        layer.lora_B[adapter].register_forward_hook(self._apply)

    def _draw(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # on the device: asking the processor would make the device wait
        chance = torch.rand((), device=inputs[0].device) if self._layer.training else None
        self.kept = None if chance is None else (chance >= self._share).float()

    def _apply(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return None if self.kept is None else output * self.kept.to(output.dtype)


class RankDropout:
    """Of each example, a share of the ranks is left out, and the others count for them.

    Source: sd-scripts' `rank_dropout`.
    """

    def __init__(self, layer: Any, adapter: str, share: float) -> None:
        """Hooked into a LoRA layer of peft's.

        Args:
            layer: of peft, which has no public type for it.
            adapter: its name there.
            share: of the ranks, 0 .. 1, less than 1.
        """
        self._share = share
        layer.lora_A[adapter].register_forward_hook(self._apply)

    def _apply(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        channels = 1 if isinstance(module, nn.Conv2d) else output.ndim - 1
        shape = [size if axis in (0, channels) else 1 for axis, size in enumerate(output.shape)]
        kept = torch.rand(shape, device=output.device) >= self._share
        return output * (kept.to(output.dtype) / (1.0 - self._share))
