"""Pictures to latents, once, before training: the autoencoder is frozen from here on."""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image

from bundled_base.networks import move

Pictures = NDArray[np.uint8]  # [N S S 3]

VARIANTS = 2  # the picture as it is, and a little smaller somewhere on the white ground
_SHRINK = (0.84, 0.95)
_WHITE = 240
_PICTURES_AT_ONCE = 64


def _shrunk(picture: Pictures, rng: np.random.Generator) -> Pictures:
    """Return the picture a little smaller at a random place, or unchanged where it bleeds off the edge."""
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    if edge.min() <= _WHITE:
        return picture
    size = picture.shape[0]
    inner = int(size * rng.uniform(*_SHRINK))
    left, top = (int(value) for value in rng.integers(0, size - inner + 1, 2))
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(Image.fromarray(picture).resize((inner, inner), Image.Resampling.LANCZOS), (left, top))
    return np.asarray(canvas)


def _batches(pictures: Pictures) -> Iterator[torch.Tensor]:
    rng = np.random.default_rng(0)
    for start in range(0, len(pictures), _PICTURES_AT_ONCE):
        chunk = pictures[start : start + _PICTURES_AT_ONCE]
        both = np.stack([variant for picture in chunk for variant in (picture, _shrunk(picture, rng))])
        yield torch.from_numpy(both).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_pictures(autoencoder: AutoencoderKL, pictures: Pictures, device: torch.device) -> NDArray[np.float16]:
    """Return the scaled latents of every variant of every picture, [N VARIANTS 4 S/4 S/4]."""
    move(autoencoder.eval(), device, torch.contiguous_format)
    scale: float = autoencoder.config["scaling_factor"]
    encoded: list[torch.Tensor] = []
    for batch in _batches(pictures):
        latents = autoencoder.encode(batch.to(device), return_dict=False)[0].mode()
        encoded.append((latents * scale).half().cpu())
    stacked = torch.cat(encoded)
    return stacked.view(-1, VARIANTS, *stacked.shape[1:]).numpy()
