"""Stable Diffusion 2.x: the 512-pixel base, and the 768-pixel model that predicts velocity."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from trainer.core.device import Precision
from trainer.families.clip import ChunkStates, read_chunks
from trainer.families.model import DiffusionModel
from trainer.families.stable_diffusion import StableDiffusion, StableDiffusionFamily
from trainer.weights.metadata import KnownFamily
from trainer.weights.names import SD_NAMES, Naming


class Sd2(StableDiffusionFamily):
    """Stable Diffusion 2.x (one OpenCLIP text encoder, 4 latent channels), with epsilon or velocity."""

    kind: Literal["sd2"] = "sd2"  # pyright: ignore[reportIncompatibleVariableOverride] - settings are frozen

    @override
    def load(self, precision: Precision, device: torch.device) -> DiffusionModel:
        return Sd2Model(self, precision, device)


class Sd2Model(StableDiffusion):
    """A loaded Stable Diffusion 2.x.

    It reads the last layer but one of OpenCLIP's ViT-H, normed. The models that are published hold 23 of the 24 layers
    for it, so that it is the last one of what is loaded.
    """

    family: ClassVar[KnownFamily] = "sd2"
    naming: ClassVar[Naming] = SD_NAMES

    def __init__(self, settings: Sd2, precision: Precision, device: torch.device) -> None:
        super().__init__(settings, precision, device, torch.float32)

    @override
    def read_tokens(self, tokens: Sequence[Tensor]) -> ChunkStates:
        return ChunkStates([read_chunks(self.network("text_encoder"), tokens[0], -1).last])

    @property
    @override
    def reading(self) -> str:
        return "last"
