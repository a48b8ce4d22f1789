"""What every model can do: encode, predict, decode."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from trainer.batch import Conditioning, Encoders, Geometry, Posterior
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

    Each network comes into memory when it is first used; autoencoder and text encoder go with `release_encoders`. So
    pictures and words are encoded without the denoiser, and training holds the denoiser alone.
    """

    family: ClassVar[KnownFamily]  # the word of a recipe: sd1, ...
    adaptable: ClassVar[Mapping[str, str]]  # word of a recipe -> regular expression over the denoiser's layer names
    naming: ClassVar[Naming]  # the layers' names in files
    latent: LatentShape
    token_limit: int  # tokens of a caption that are read, without end marks
    schedule: DiscreteSchedule
    prediction: AnyPrediction  # what the weights were trained to predict

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
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels [B 3 H W] in -1 .. 1, float32, from latents [B C h w] scaled as the network expects."""

    @abstractmethod
    def encode_words(self, captions: Sequence[str]) -> Conditioning:
        """What B captions mean to the network, float32; what lies past `token_limit` is cut off."""

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
            geometry: of B pictures, where the family asks for it.
        """

    @abstractmethod
    def encoders(self) -> Encoders:
        """The two encoding verbs together with the names under which a cache stores their results."""

    @abstractmethod
    def use_gradient_checkpointing(self) -> None:
        """Compute each block's forward pass again in the backward pass instead of keeping it in memory."""

    @abstractmethod
    def release_encoders(self) -> None:
        """Give back the memory of autoencoder and text encoder; they come again when they are used."""

    @abstractmethod
    def scheduler_config(self) -> dict[str, object]:
        """The scheduler settings that came with the weights, in diffusers' words, for samplers."""
