"""Stable Diffusion XL: two text encoders, pooled states, and the sizes of the picture as words of their own."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from trainer.batch import Conditioning, Geometry
from trainer.core.device import Precision
from trainer.families.clip import ChunkStates, read_chunks, unwrapped
from trainer.families.model import DiffusionModel
from trainer.families.stable_diffusion import StableDiffusion, StableDiffusionFamily
from trainer.weights.metadata import KnownFamily
from trainer.weights.names import SDXL_NAMES, Naming

_LAYER = -2  # the last layer but one of both text encoders, without the final norm


class Sdxl(StableDiffusionFamily):
    """Stable Diffusion XL (two text encoders, 4 latent channels), with epsilon or velocity."""

    kind: Literal["sdxl"] = "sdxl"  # pyright: ignore[reportIncompatibleVariableOverride] - settings are frozen
    vae_precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the autoencoder: bfloat16 is quicker and takes half the memory, and its latents are a little
    coarser. float16 is not offered, since the autoencoder gives NaN in it."""

    @override
    def load(self, precision: Precision, device: torch.device) -> DiffusionModel:
        return SdxlModel(self, precision, device)

    @property
    @override
    def tokenizers(self) -> Sequence[Literal["tokenizer", "tokenizer_2"]]:
        return ("tokenizer", "tokenizer_2")


class SdxlModel(StableDiffusion):
    """A loaded Stable Diffusion XL.

    Source: Podell et al. 2023, arXiv:2307.01952, section 2.2 on sizes and crops, table 1 on the text encoders.
    """

    family: ClassVar[KnownFamily] = "sdxl"
    naming: ClassVar[Naming] = SDXL_NAMES
    text_parts: ClassVar[Mapping[str, str]] = {"te1": "text_encoder", "te2": "text_encoder_2"}

    def __init__(self, settings: Sdxl, precision: Precision, device: torch.device) -> None:
        super().__init__(settings, precision, device, Precision(settings.vae_precision).dtype)

    @override
    def read_tokens(self, tokens: Sequence[Tensor]) -> ChunkStates:
        network, second = self.network("text_encoder"), self.network("text_encoder_2")
        first = read_chunks(network, tokens[0], _LAYER)
        states = read_chunks(second, tokens[1], _LAYER)
        ends = self._words[1].first_end(tokens[1][:, 0])  # of the first chunk
        pooled = unwrapped(second).text_projection(states.last[torch.arange(len(ends), device=ends.device), 0, ends])
        return ChunkStates([first.layer, states.layer], pooled)

    @override
    def encode_negatives(self, captions: Sequence[str]) -> Conditioning:
        words = self.encode_words(captions)
        if words.pooled is None or not self.source.facts.zeroed_negative:
            return words
        there = torch.tensor([float(caption != "") for caption in captions], device=self.device)
        return Conditioning(tokens=words.tokens * there[:, None, None], pooled=words.pooled * there[:, None])

    @override
    def predict(self, noisy: Tensor, t: Tensor, words: Conditioning, geometry: Geometry | None = None) -> Tensor:
        if words.pooled is None:
            raise ValueError("this family reads pooled text states, and these words have none")
        if geometry is None:
            height, width = (side * self.latent.scale for side in noisy.shape[-2:])
            geometry = Geometry.whole(len(noisy), height, width, noisy.device)
        # in float32: sixteen bits cannot tell 1023 pixels from 1024
        sizes = torch.cat([geometry.original, geometry.crop, geometry.target], dim=1).to(noisy.device, torch.float32)
        pooled = words.pooled.to(self._dtype)
        return self._ask(noisy, t, words, {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}})

    @property
    @override
    def reading(self) -> str:
        return "last-but-one"
