"""Pictures to latents and back, with the numbers that bring latents to about unit variance."""

from typing import Any, Final

import torch
from torch import Tensor

from trainer.batch import Posterior
from trainer.core.errors import DataError, NonFiniteError
from trainer.families.decoding import decode
from trainer.families.source import WeightsSource

_USUAL_FACTOR: Final = 0.18215  # where a configuration names none: diffusers' default, and that of SD 1.x and 2.x


class Autoencoder:
    """The autoencoder of a model; it comes into memory when it is first used.

    Never in float16, in which SDXL's own gives NaN; in float32 unless bfloat16 is asked for.
    """

    def __init__(self, source: WeightsSource, dtype: torch.dtype, device: torch.device) -> None:
        """Nothing is loaded yet.

        Raises:
            WeightsError: its configuration cannot be read.
        """
        self._source = source
        self._dtype = dtype
        self._device = device
        self._network: Any = None
        config = source.config("vae")
        self.factor = factor_of(config)
        self.shift = float(config.get("shift_factor") or 0.0)
        self.channels = int(config["latent_channels"])
        self.scale = 2 ** (len(config["block_out_channels"]) - 1)  # pixels a latent column

    @property
    def name(self) -> str:
        """What decides its results besides its weights."""
        return f"{str(self._dtype).removeprefix('torch.')}-{self.factor:g}-{self.shift:g}"

    def encode(self, pixels: Tensor) -> Posterior:
        """See `DiffusionModel.encode_pictures`."""
        height, width = pixels.shape[-2:]
        if height % self.scale or width % self.scale:
            raise DataError(f"A picture of {width}x{height} pixels is no multiple of {self.scale}.")
        with torch.no_grad():
            picture = pixels.to(self._device, self._dtype, memory_format=torch.channels_last)
            posterior = self._loaded().encode(picture).latent_dist
            mean, deviation = posterior.mean.float(), posterior.std.float()
            return Posterior(mean=(mean - self.shift) * self.factor, deviation=deviation * self.factor)

    def decode(self, latents: Tensor, most: int | None = None) -> Tensor:
        """See `DiffusionModel.decode_latents`."""
        if not bool(torch.isfinite(latents).all()):
            raise NonFiniteError(
                "The network gave numbers that are not finite while it drew a picture.",
                mend="Draw with precision=bfloat16 or float32; if it persists, the weights or the adapter are damaged.",
            )
        with torch.no_grad():
            plain = latents.to(self._device, torch.float32) / self.factor + self.shift
            pixels = decode(self._loaded(), plain.to(self._dtype), most).float()
        if not bool(torch.isfinite(pixels).all()):
            raise NonFiniteError(
                "The autoencoder gave numbers that are not finite.",
                where=self._source.where,
                mend="Its weights are damaged, or it is one of another family: check model.vae.",
            )
        return pixels

    def release(self) -> None:
        """Give its memory back."""
        self._network = None

    def _loaded(self) -> Any:
        if self._network is None:
            network: Any = self._source.load("vae", self._dtype)
            self._network = network.to(device=self._device, memory_format=torch.channels_last)
        return self._network


def factor_of(config: dict[str, Any]) -> float:
    """What latents are multiplied by, as an autoencoder's configuration says it."""
    return float(config.get("scaling_factor") or _USUAL_FACTOR)
