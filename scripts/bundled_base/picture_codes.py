"""A short code of each picture, for the text encoder's hint."""

import numpy as np
from numpy.typing import NDArray

CODE_SIZE = 128


def picture_codes(latents: NDArray[np.float16], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the leading principal components of the latents, half whitened, with a mean square of one.

    Args:
        latents: one latent per picture.  [N C h w]
        weights: how often each picture is drawn; those never drawn do not shape the axes.  [N]
    """
    flat = latents.reshape(len(latents), -1).astype(np.float32)
    flat = flat - flat[weights > 0].mean(0)
    _, spread, axes = np.linalg.svd(flat[weights > 0], full_matrices=False)
    size = min(CODE_SIZE, len(spread))
    # half whitening: the square root keeps the large axes first without drowning the details that tell
    # one face from another
    codes = flat @ axes[:size].T / np.sqrt(spread[:size] + 1e-6)
    return (codes / np.sqrt((codes[weights > 0] ** 2).mean() + 1e-12)).astype(np.float32)
