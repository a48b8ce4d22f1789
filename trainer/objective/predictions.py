"""What the network predicts, and what that says of the clean latent."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.settings import Settings


class Prediction(Settings, ABC):
    """One way to say what is clean and what is noise in noisy = a * clean + s * noise.

    Latents are [B C h w]; a and s are of any shape that broadcasts with them, as [B 1 1 1].
    """

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """What a perfect network would answer, [B C h w]."""

    @abstractmethod
    def clean(self, predicted: Tensor, noisy: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The clean latent [B C h w] that the answer `predicted` implies."""

    @abstractmethod
    def gain(self, a: Tensor, s: Tensor) -> Tensor:
        """Squared error of the prediction per squared error of the clean latent it implies; shaped as a.

        Through it a weighting, which speaks of clean latents, holds for every prediction.
        """


class Epsilon(Prediction):
    """The noise itself.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14.
    """

    kind: Literal["epsilon"] = "epsilon"

    def target(self, clean: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.target`."""
        return noise

    def clean(self, predicted: Tensor, noisy: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.clean`; infinite where a is 0, for pure noise says nothing of the clean latent."""
        return (noisy - s * predicted) / a

    def gain(self, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.gain`."""
        return (a / s).square()


class Velocity(Prediction):
    """The direction in which the latent turns on its way to noise: v = a * noise - s * clean.

    Source: Salimans and Ho 2022, arXiv:2202.00512, section 4 and appendix D.
    """

    kind: Literal["velocity"] = "velocity"

    def target(self, clean: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.target`."""
        return a * noise - s * clean

    def clean(self, predicted: Tensor, noisy: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.clean`; holds because a^2 + s^2 = 1."""
        return a * noisy - s * predicted

    def gain(self, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.gain`: 1 / s^2, which is SNR + 1."""
        return 1 / s.square()


class Sample(Prediction):
    """The clean latent itself."""

    kind: Literal["sample"] = "sample"

    def target(self, clean: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.target`."""
        return clean

    def clean(self, predicted: Tensor, noisy: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.clean`."""
        return predicted

    def gain(self, a: Tensor, s: Tensor) -> Tensor:
        """See `Prediction.gain`."""
        return torch.ones_like(a)


def prediction_of(config: Mapping[str, object]) -> "AnyPrediction":
    """What a `scheduler_config.json` of diffusers says that its network predicts; silence means epsilon.

    Raises:
        WeightsError: the file names a prediction that we do not know.
    """
    said = config.get("prediction_type", "epsilon")
    known: dict[object, AnyPrediction] = {"epsilon": Epsilon(), "v_prediction": Velocity(), "sample": Sample()}
    if said not in known:
        raise WeightsError(
            f"This model predicts {said!r}, which we do not know.",
            where="scheduler/scheduler_config.json, prediction_type",
            mend=f"Models that predict {', '.join(str(word) for word in known)} can be trained.",
        )
    return known[said]


AnyPrediction = Annotated[Epsilon | Velocity | Sample, Field(discriminator="kind")]
