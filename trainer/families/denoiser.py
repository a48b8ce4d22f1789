"""The denoiser comes into memory as the recipe wants it kept: as it is, in few bits, or partly on the host."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from trainer.families.checkpointing import checkpoint_denoiser
from trainer.families.offloading import StreamedBlocks, blocks_to_stream
from trainer.families.quantising import Quantiser, Quantized
from trainer.families.source import WeightsSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How a frozen denoiser lies in memory."""

    dtype: torch.dtype  # of what is not quantised, and of the arithmetic
    device: torch.device
    quantize: Quantized | Literal["none"] = "none"
    resident: float = 1.0  # share of its bytes that stays on the device

    def load(self, source: WeightsSource) -> "KeptDenoiser":
        """The denoiser of `source`, frozen and in evaluation mode.

        Raises:
            WeightsError: it is missing, broken, or does not fit its configuration.
        """
        streams = self.resident < 1
        quantiser = None
        if self.quantize != "none":
            quantiser = Quantiser(self.quantize, self.dtype, torch.device("cpu") if streams else self.device)
        network: Any = source.load("unet", self.dtype, quantiser)
        network = network.to(memory_format=torch.channels_last)
        streamed = None
        if streams:
            streamed = StreamedBlocks(blocks_to_stream(network, self.resident), self.device)
        return KeptDenoiser(network.to(self.device), streamed)


@dataclass(frozen=True, slots=True)
class KeptDenoiser:
    """A denoiser in memory."""

    network: nn.Module
    streamed: StreamedBlocks | None

    def checkpoint(self, network: nn.Module, every: int) -> None:
        """Let blocks be computed again in the backward pass; those that stream are so anyway.

        Args:
            network: the denoiser as it is by now.
            every: 1 for all blocks, 2 for every second one.
        """
        checkpoint_denoiser(network, every, () if self.streamed is None else self.streamed.blocks)
