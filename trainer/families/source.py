"""The weights of a base model, wherever they lie: what they are, and their networks one by one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from trainer.families.quantising import Quantiser
from trainer.weights.metadata import KnownFamily, KnownPrediction
from trainer.weights.original_names import Part as Part


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What small files or a header tell of a model, before anything is loaded."""

    family: KnownFamily
    prediction: KnownPrediction
    zero_terminal_snr: bool = False
    inpainting: bool = False
    precision: str  # of the stored U-Net: float32, float16, bfloat16
    prediction_guessed: bool = False  # nothing says what it predicts: a recipe may say otherwise without contradiction
    zeroed_negative: bool = True  # SDXL: no negative prompt means zeros; model_index.json, force_zeros_for_empty_prompt
    said: tuple[str, ...] = ()  # how each was found, for a person: "v-prediction: the file holds the marker v_pred"


class WeightsSource(ABC):
    """A base model on disk; nothing is loaded before it is asked for."""

    where: str  # how messages call it
    facts: ModelFacts
    revision: str | None = None  # the hub's commit, where it comes from there

    @abstractmethod
    def check(self) -> None:
        """Make sure, from headers and small files alone, that every part is there, whole, and fits its configuration.

        Raises:
            WeightsError: a part is missing, broken, a pickle, or of the wrong shape.
        """

    @abstractmethod
    def config(self, part: Part | Literal["scheduler"]) -> dict[str, Any]:
        """The configuration of a part, in the words of diffusers or transformers."""

    @abstractmethod
    def load(self, part: Part, dtype: torch.dtype, quantiser: Quantiser | None = None) -> nn.Module:
        """One network on the CPU, in evaluation mode, frozen, in `dtype`, whatever the format on disk.

        Args:
            part: which network.
            dtype: its number format.
            quantiser: keeps the layers that it chooses in few bits instead, where it says.

        Raises:
            WeightsError: it is missing, broken, does not fit its configuration, or is not finite.
        """

    @abstractmethod
    def tokenizer(self, part: Literal["tokenizer", "tokenizer_2"] = "tokenizer") -> Path:
        """The folder of a tokenizer's files."""

    @abstractmethod
    def digest(self, part: Part | Literal["tokenizer", "tokenizer_2"]) -> str:
        """A name that changes when anything in the part changes; for cache keys."""
