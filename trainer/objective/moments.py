"""When the examples of a batch are asked."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """The moments of B examples between picture and noise, and how much of each is mixed then."""

    t: Tensor  # [B] float32 in [0, 1): 0 is the picture, 1 is noise
    a: Tensor  # [B] float32, the share of the clean latent
    s: Tensor  # [B] float32, the share of the noise, above 0

    @property
    def snr(self) -> Tensor:
        """The signal-to-noise ratio [B]; 0 at pure noise."""
        return (self.a / self.s).square()

    @property
    def columns(self) -> tuple[Tensor, Tensor]:
        """The shares a and s as [B 1 1 1], which broadcast with latents."""
        return self.a[:, None, None, None], self.s[:, None, None, None]

    def stacked(self, weight: Tensor) -> Tensor:
        """All numbers of each example with its weight [B] in one piece [4 B], so that one copy moves them."""
        return torch.stack((self.t, self.a, self.s, weight))
