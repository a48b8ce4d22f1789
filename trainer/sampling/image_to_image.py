"""A picture that drawing begins with."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainer.families.model import DiffusionModel


@dataclass(frozen=True, slots=True)
class Start:
    """A picture, and how much of it is drawn anew.

    Source: Meng et al. 2021, SDEdit, arXiv:2108.01073.
    """

    picture: Image.Image  # RGB
    strength: float  # in (0, 1]: 1 draws nearly everything anew

    def latents(self, model: DiffusionModel, width: int, height: int) -> Tensor:
        """The middle of what the autoencoder says of the picture, cut to so many pixels: [1 C h w] on the CPU."""
        fitted = ImageOps.fit(self.picture, (width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        return model.encode_pictures(pixels).mean.cpu()

    def size(self, side: int, step: int) -> tuple[int, int]:
        """Width and height for the model: of the picture's shape, of about side * side pixels, multiples of `step`."""
        width, height = self.picture.size
        shrink = side / (width * height) ** 0.5
        return max(step, round(width * shrink / step) * step), max(step, round(height * shrink / step) * step)
