"""The family that the weights themselves say they are of."""

from functools import cached_property
from typing import Literal

import torch
from pydantic import PositiveInt
from typing_extensions import override

from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.core.log import logger
from trainer.families.fitting import TITLES
from trainer.families.loading import open_weights
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.families.sd2 import Sd2
from trainer.families.sdxl import Sdxl
from trainer.families.source import ModelFacts
from trainer.families.stable_diffusion import StableDiffusionFamily, StableDiffusionSettings

_FAMILIES: dict[str, type[StableDiffusionFamily]] = {"sd1": Sd1, "sd2": Sd2, "sdxl": Sdxl}


class Auto(StableDiffusionSettings):
    """Any Stable Diffusion: family and prediction are read from the weights."""

    kind: Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride] - settings are frozen
    weights: str = "bundled"
    """A .safetensors checkpoint, a diffusers folder, a hub name, or `bundled` (the small base model that comes with the
    package)."""

    clip_skip: PositiveInt | None = None
    """Which layer of the text encoder is read, counted from the end; only for Stable Diffusion 1.x."""

    @cached_property
    def found(self) -> StableDiffusionFamily:
        """The same settings for the family that the weights are of; it is said once.

        Raises:
            WeightsError: the weights are missing, a pickle, broken, or of no family that is known; or there is a
                `clip_skip` for a family that has none.
        """
        source = open_weights(self.weights, self.vae)
        logger.info("%s: %s.", source.where, in_words(source.facts))
        own = {name: getattr(self, name) for name in StableDiffusionSettings.model_fields if name != "kind"}
        family = _FAMILIES[source.facts.family]
        if self.clip_skip is not None and family is not Sd1:
            raise WeightsError(
                f"The recipe has a clip_skip, and these weights are {TITLES[source.facts.family]}, which has none.",
                where="model.clip_skip",
                mend="Leave it out: the layer is fixed there.",
            )
        return family(**own) if self.clip_skip is None else Sd1(**own, clip_skip=self.clip_skip)

    @override
    def check(self) -> None:
        self.found.check()

    @override
    def load(self, precision: Precision, device: torch.device) -> DiffusionModel:
        return self.found.load(precision, device)


def in_words(facts: ModelFacts) -> str:
    """What is known of weights, and by what."""
    known = [TITLES[facts.family], f"predicts {facts.prediction}", f"stored in {facts.precision}"]
    known += ["zero terminal SNR"] if facts.zero_terminal_snr else []
    known += ["inpainting"] if facts.inpainting else []
    return ", ".join(known) + (f" ({'; '.join(facts.said)})" if facts.said else "")
