"""Stable Diffusion 1.x, and the small bundled base, which is the same classes scaled down."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from typing_extensions import override

from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.families.clip import ChunkStates, normed, read_chunks
from trainer.families.model import DiffusionModel
from trainer.families.source import WeightsSource
from trainer.families.stable_diffusion import StableDiffusion, StableDiffusionFamily
from trainer.weights.metadata import KnownFamily
from trainer.weights.names import SD_NAMES, Naming


class Sd1(StableDiffusionFamily):
    """Stable Diffusion 1.x (one CLIP text encoder, 4 latent channels), of any size."""

    kind: Literal["sd1"] = "sd1"  # pyright: ignore[reportIncompatibleVariableOverride] - settings are frozen
    weights: str = "bundled"
    """A .safetensors checkpoint, a diffusers folder, a hub name, or `bundled` (the small base model that comes with the
    package)."""
    clip_skip: PositiveInt = 1
    """Which layer of the text encoder is read, counted from the end as most programs do: 1 is the last one, 2 the one
    before, as many anime models want it."""

    @override
    def open(self) -> WeightsSource:
        source = super().open()
        layers = int(source.config("text_encoder")["num_hidden_layers"])
        if self.clip_skip > layers:
            raise WeightsError(
                f"The text encoder has {layers} layers, so clip_skip cannot be {self.clip_skip}.",
                where="model.clip_skip",
                mend="Choose 1, or 2 where the model's page says so.",
            )
        return source

    @override
    def load(self, precision: Precision, device: torch.device) -> DiffusionModel:
        return Sd1Model(self, precision, device)


class Sd1Model(StableDiffusion):
    """A loaded Stable Diffusion 1.x."""

    family: ClassVar[KnownFamily] = "sd1"
    naming: ClassVar[Naming] = SD_NAMES

    def __init__(self, settings: Sd1, precision: Precision, device: torch.device) -> None:
        super().__init__(settings, precision, device, torch.float32)
        self.clip_skip = self._skip = settings.clip_skip

    @override
    def read_tokens(self, tokens: Sequence[Tensor]) -> ChunkStates:
        network = self.network("text_encoder")
        states = read_chunks(network, tokens[0], -self._skip)
        # skipped layers or not, the final norm is applied: the U-Net was trained on states of its size
        return ChunkStates([states.last if self._skip == 1 else normed(network, states.layer)])

    @property
    @override
    def reading(self) -> str:
        return f"skip{self._skip}"
