"""How much each moment t counts in the loss."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from trainer.core.settings import Settings


class Weighting(Settings, ABC):
    """A factor on each example's loss."""

    @abstractmethod
    def weigh(self, snr: Tensor, gain: Tensor) -> Tensor:
        """The factors [B] on the prediction's squared error, finite also at pure noise.

        Args:
            snr: the signal-to-noise ratio (a / s)^2 [B].
            gain: squared error of the prediction per squared error of the clean latent [B]; see `Prediction.gain`.
                What should count w times in clean latents counts w / gain times in predictions.
        """


class Flat(Weighting):
    """Every prediction counts the same, whatever t: the plain loss of the base models."""

    kind: Literal["flat"] = "flat"

    def weigh(self, snr: Tensor, gain: Tensor) -> Tensor:
        """See `Weighting.weigh`."""
        return torch.ones_like(snr)


class NoiseError(Weighting):
    """Every error of the noise counts the same, whatever the network predicts: epsilon's plain loss for all.

    In clean latents the weight is SNR; so it is 1 for epsilon and SNR / (SNR + 1) for velocity. Source: Ho et al. 2020,
    arXiv:2006.11239, eq. 14.
    """

    kind: Literal["noise_error"] = "noise_error"

    def weigh(self, snr: Tensor, gain: Tensor) -> Tensor:
        """See `Weighting.weigh`."""
        return _per_gain(snr, gain)


class MinSnr(Weighting):
    """Min-SNR-gamma: keep easy, nearly clean timesteps from drowning the hard ones.

    In clean latents the weight is min(SNR, gamma); so it is min(SNR, gamma) / SNR for epsilon and
    min(SNR, gamma) / (SNR + 1) for velocity. Source: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """

    kind: Literal["min_snr"] = "min_snr"
    gamma: PositiveFloat = 5.0
    """Where the weight stops to grow; the smaller, the less the nearly clean timesteps count."""

    def weigh(self, snr: Tensor, gain: Tensor) -> Tensor:
        """See `Weighting.weigh`."""
        return _per_gain(snr.clamp(max=self.gamma), gain)


class SoftMinSnr(Weighting):
    """Min-SNR-gamma without its corner: nearly SNR for noisy timesteps, nearly gamma for clean ones.

    In clean latents the weight is SNR * gamma / (SNR + gamma), half of min-SNR's at SNR = gamma. Source: Crowson et al.
    2024, arXiv:2401.11605, on the loss weighting.
    """

    kind: Literal["soft_min_snr"] = "soft_min_snr"
    gamma: PositiveFloat = 5.0
    """What the weight grows towards; the paper takes 4."""

    def weigh(self, snr: Tensor, gain: Tensor) -> Tensor:
        """See `Weighting.weigh`."""
        return _per_gain(snr * self.gamma / (snr + self.gamma), gain)


class Debiased(Weighting):
    """Debiased estimation: the noisier, the more it counts; 1 / sqrt(SNR) for epsilon.

    In clean latents the weight is sqrt(SNR). Source: Yu et al. 2023, arXiv:2310.08442, eq. 9.
    """

    kind: Literal["debiased"] = "debiased"

    def weigh(self, snr: Tensor, gain: Tensor) -> Tensor:
        """See `Weighting.weigh`."""
        return _per_gain(snr.sqrt(), gain)


class P2(Weighting):
    """Perception prioritised: the nearly clean timesteps, which hold only details that nobody sees, count less.

    In clean latents the weight is SNR / (k + SNR)^gamma; 1 / (k + SNR)^gamma for epsilon. Source: Choi et al. 2022,
    arXiv:2204.00227, on P2 weighting.
    """

    kind: Literal["p2"] = "p2"
    gamma: NonNegativeFloat = 1.0
    """How strongly; 0: not at all."""
    k: PositiveFloat = 1.0
    """The signal-to-noise ratio at which it sets in."""

    def weigh(self, snr: Tensor, gain: Tensor) -> Tensor:
        """See `Weighting.weigh`."""
        return _per_gain(snr * (self.k + snr).pow(-self.gamma), gain)


def _per_gain(weight: Tensor, gain: Tensor) -> Tensor:
    """`weight` / `gain`; 0 where both are 0: a noise predicted out of pure noise teaches nothing about the picture."""
    return weight / gain.clamp(min=torch.finfo(gain.dtype).tiny)


AnyWeighting = Annotated[Flat | NoiseError | MinSnr | SoftMinSnr | Debiased | P2, Field(discriminator="kind")]
