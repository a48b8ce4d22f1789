"""The solvers that a recipe can name, each a diffusers scheduler with its options."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from trainer.core.settings import Settings


class Sampler(Settings, ABC):
    """How noise becomes a picture."""

    @abstractmethod
    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A fresh diffusers scheduler for a model with these scheduler settings.

        diffusers' schedulers share their methods but no type.
        """


class Ddim(Sampler):
    """DDIM, deterministic.

    Source: Song et al. 2020, arXiv:2010.02502.
    """

    kind: Literal["ddim"] = "ddim"

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A `DDIMScheduler`."""
        from diffusers import DDIMScheduler

        return DDIMScheduler.from_config(dict(config))


class DpmPlusPlus2M(Sampler):
    """DPM-Solver++ (2M), quick and deterministic.

    Source: Lu et al. 2022, arXiv:2211.01095.
    """

    kind: Literal["dpm++_2m"] = "dpm++_2m"
    karras: bool = False
    """Space the steps as Karras et al. 2022 (arXiv:2206.00364, equation 5) do."""

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A `DPMSolverMultistepScheduler`."""
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(dict(config), use_karras_sigmas=self.karras)


class UniPc(Sampler):
    """UniPC, deterministic, good with few steps.

    Source: Zhao et al. 2023, arXiv:2302.04867.
    """

    kind: Literal["unipc"] = "unipc"

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A `UniPCMultistepScheduler`."""
        from diffusers import UniPCMultistepScheduler

        return UniPCMultistepScheduler.from_config(dict(config))


class EulerA(Sampler):
    """Euler with fresh noise in each step ("Euler a").

    Source: Karras et al. 2022, arXiv:2206.00364; the ancestral step as in k-diffusion.
    """

    kind: Literal["euler_a"] = "euler_a"

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """An `EulerAncestralDiscreteScheduler`."""
        from diffusers import EulerAncestralDiscreteScheduler

        return EulerAncestralDiscreteScheduler.from_config(dict(config))


AnySampler = Annotated[Ddim | DpmPlusPlus2M | UniPc | EulerA, Field(discriminator="kind")]

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Ddim(),
    "dpm++_2m": DpmPlusPlus2M(),
    "dpm++_2m_karras": DpmPlusPlus2M(karras=True),
    "unipc": UniPc(),
    "euler_a": EulerA(),
}
"""The solvers as one word each, for the command line."""
