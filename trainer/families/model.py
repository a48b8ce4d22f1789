"""What every model can do: encode, predict, decode."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.batch import Conditioning, Encoders, Geometry, Posterior
from trainer.families.emphasised import Emphasised
from trainer.families.new_words import Vocabulary
from trainer.families.source import WeightsSource
from trainer.objective.predictions import AnyPrediction
from trainer.objective.schedules import DiscreteSchedule
from trainer.weights.metadata import KnownFamily
from trainer.weights.names import Naming


@dataclass(frozen=True, slots=True)
class LatentShape:
    """How pictures and latents relate."""

    channels: int
    scale: int  # pixels a latent column
    multiple: int  # latent height and width are multiples of this: how far the denoiser shrinks them

    @property
    def step(self) -> int:
        """Pixels: a picture's width and height are multiples of this."""
        return self.scale * self.multiple


class DiffusionModel(ABC):
    """One loaded model: the network that is trained, and what it needs around it.

    Each network comes into memory when it is first used; autoencoder and text encoders go with `release_encoders`. So
    pictures and words are encoded without the denoiser, and training holds the denoiser alone.
    """

    family: ClassVar[KnownFamily]  # the word of a recipe: sd1, ...
    adaptable: ClassVar[Mapping[str, str]]  # word of a recipe -> regular expression over the denoiser's layer names
    text_parts: ClassVar[Mapping[str, str]]  # word of a recipe (te1, te2) -> the part that it means
    adaptable_text: ClassVar[str]  # regular expression over a text encoder's layer names
    naming: ClassVar[Naming]  # the layers' names in files
    latent: LatentShape
    token_limit: int  # tokens of a caption that are read, without end marks
    clip_skip: int | None = None  # which layer of the text encoder is read, from the end, where a recipe chooses it
    schedule: DiscreteSchedule
    zero_terminal_snr: bool  # whether the last step of the schedule is pure noise
    prediction: AnyPrediction  # what the weights were trained to predict, and pictures are drawn by
    resolution: int  # pixels a side that the weights were made for
    revision: str | None  # the hub's commit of the weights, where they come from there
    vocabulary: Vocabulary  # of the text encoders, to which words can be added
    source: WeightsSource  # the base as it lies on disk

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network that is trained; it may be given back wrapped, as for several devices.

        Raises:
            WeightsError: its weights are broken.
        """

    @denoiser.setter
    @abstractmethod
    def denoiser(self, network: nn.Module) -> None: ...

    @abstractmethod
    def network(self, part: str) -> nn.Module:
        """The network of a part: `unet` (the denoiser), or one that `text_parts` names; loaded when it is not yet.

        Raises:
            WeightsError: its weights are broken.
        """

    @abstractmethod
    def set_network(self, part: str, network: nn.Module) -> None:
        """Give a part back wrapped, as for several devices."""

    @abstractmethod
    def hold_in(self, part: str, dtype: torch.dtype) -> nn.Module:
        """The network of a part, from now on with all its weights in `dtype`, in which it also computes by itself."""

    @abstractmethod
    def keep_text_encoders(self) -> None:
        """From now on `release_encoders` leaves the text encoders where they are, as they are: they are trained."""

    @abstractmethod
    def encode_pictures(self, pixels: Tensor) -> Posterior:
        """What the autoencoder says of pictures.

        Args:
            pixels: [B 3 H W], sRGB mapped to -1 .. 1; H and W are multiples of `latent.scale`.

        Returns:
            Mean and deviation [B C h w] with h = H / latent.scale, float32, multiplied by the family's factor, so
            that a draw from it is of about unit variance.

        Raises:
            DataError: H or W is no multiple of `latent.scale`.

        Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1.
        """

    @abstractmethod
    def decode_latents(self, latents: Tensor, most: int | None = None) -> Tensor:
        """Pixels [B 3 H W] in -1 .. 1, float32, from latents [B C h w] scaled as the network expects.

        Args:
            latents: as the denoiser leaves them.
            most: bytes that it may take, the autoencoder's own among them. Where they do not suffice, or memory runs
                out, pictures are decoded in strips: the same but for rounding, and slower. None: what is quickest.

        Raises:
            NonFiniteError: the latents, or the pixels that the autoencoder makes of them, are not finite.
        """

    @abstractmethod
    def encode_words(self, captions: Sequence[str]) -> Conditioning:
        """What B captions mean to the network, float32; what lies past `token_limit` is cut off.

        The text encoders answer in evaluation mode and without gradients, also while they are trained.
        """

    @abstractmethod
    def encode_words_live(self, captions: Sequence[str]) -> Conditioning:
        """The same in the mode that the text encoders are in, with gradients, for training them."""

    @abstractmethod
    def encode_emphasised(self, prompt: Emphasised) -> Conditioning:
        """What one prompt with weights means where pictures are drawn, float32, [1 T D]; nothing of it is cut off.

        A prompt that the token limit holds, and that begins no chunk by itself, is laid out as captions are; where all
        its weights are 1 it means what `encode_words` says. Any other has as many chunks as it needs, and all 77 states
        of each, as programs that draw have it.
        """

    def encode_negatives(self, captions: Sequence[str]) -> Conditioning:
        """What B negative prompts mean where pictures are drawn: an empty one may mean zeros, as the family says."""
        return self.encode_words(captions)

    @abstractmethod
    def count_tokens(self, caption: str) -> int:
        """The number of tokens of a caption, without the two that mark its ends and before any cutting."""

    @abstractmethod
    def lost_words(self, caption: str) -> str:
        """The end of a caption that the text encoder does not read, as it stands there; "" if it reads all."""

    @abstractmethod
    def predict(self, noisy: Tensor, t: Tensor, words: Conditioning, geometry: Geometry | None = None) -> Tensor:
        """The network's prediction [B C h w].

        Args:
            noisy: [B C h w].
            t: [B] int64, the timesteps as the network counts them.
            words: of B captions.
            geometry: of B pictures, where the family asks for it; absent: they are whole, and as large as `noisy`.
        """

    @abstractmethod
    def encoders(self) -> Encoders:
        """The two encoding verbs together with the names under which a cache stores their results."""

    @abstractmethod
    def use_gradient_checkpointing(self, every: int = 1) -> None:
        """Compute blocks' forward passes again in the backward pass instead of keeping them; gradients stay the same.

        It holds for the denoiser, and for text encoders that are kept.

        Args:
            every: 1 for all blocks, 2 for every second one.
        """

    @abstractmethod
    def release_encoders(self) -> None:
        """Give back the memory of autoencoder and text encoders; they come again when they are used."""

    @abstractmethod
    def scheduler_config(self) -> dict[str, object]:
        """The scheduler settings by which pictures are drawn, in diffusers' words, for samplers.

        They are those of the weights, with the prediction and the last step's noise as the run has them.
        """
