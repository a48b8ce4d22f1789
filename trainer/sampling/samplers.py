"""The solvers that a recipe can name, each a diffusers scheduler with its options."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings


class Sampler(Settings, ABC):
    """How noise becomes a picture."""

    most_steps: ClassVar[int] = 1000
    """How often it can ask the network at most."""

    @abstractmethod
    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A fresh diffusers scheduler for a model with these scheduler settings.

        diffusers' schedulers share their methods but no type.
        """

    def check(self, steps: int) -> None:
        """Make sure that it can take so many steps.

        Raises:
            RecipeError: it cannot.
        """
        if steps > self.most_steps:
            raise RecipeError(
                f"This sampler takes at most {self.most_steps} steps, and {steps} are asked for.",
                where="steps",
                mend="Ask for fewer: it is made for 1 to 8 steps.",
            )


class Ddim(Sampler):
    """DDIM, deterministic.

    Source: Song et al. 2020, arXiv:2010.02502.
    """

    kind: Literal["ddim"] = "ddim"

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A `DDIMScheduler`."""
        from diffusers import DDIMScheduler

        return DDIMScheduler.from_config(dict(config))


class Ddpm(Sampler):
    """DDPM, the original chain with fresh noise in each step; wants many steps.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2.
    """

    kind: Literal["ddpm"] = "ddpm"

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A `DDPMScheduler`."""
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(dict(config))


class Euler(Sampler):
    """Euler's method, deterministic.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2 without churn.
    """

    kind: Literal["euler"] = "euler"
    karras: bool = False
    """Space the steps as Karras et al. 2022 (arXiv:2206.00364, equation 5) do."""

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """An `EulerDiscreteScheduler`."""
        from diffusers import EulerDiscreteScheduler

        return EulerDiscreteScheduler.from_config(dict(config), use_karras_sigmas=self.karras)


class EulerA(Sampler):
    """Euler with fresh noise in each step ("Euler a").

    Source: Karras et al. 2022, arXiv:2206.00364; the ancestral step as in k-diffusion.
    """

    kind: Literal["euler_a"] = "euler_a"

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """An `EulerAncestralDiscreteScheduler`."""
        from diffusers import EulerAncestralDiscreteScheduler

        return EulerAncestralDiscreteScheduler.from_config(dict(config))


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


class DpmPlusPlus2MSde(Sampler):
    """DPM-Solver++ (2M) with fresh noise in each step.

    Source: Lu et al. 2022, arXiv:2211.01095, appendix D.3.
    """

    kind: Literal["dpm++_2m_sde"] = "dpm++_2m_sde"
    karras: bool = False
    """Space the steps as Karras et al. 2022 (arXiv:2206.00364, equation 5) do."""

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A `DPMSolverMultistepScheduler` of the stochastic kind."""
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(
            dict(config), use_karras_sigmas=self.karras, algorithm_type="sde-dpmsolver++"
        )


class UniPc(Sampler):
    """UniPC, deterministic, good with few steps.

    Source: Zhao et al. 2023, arXiv:2302.04867.
    """

    kind: Literal["unipc"] = "unipc"

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A `UniPCMultistepScheduler`."""
        from diffusers import UniPCMultistepScheduler

        return UniPCMultistepScheduler.from_config(dict(config))


class Lcm(Sampler):
    """For models and LoRAs that were distilled as latent consistency models: 4 to 8 steps, guidance 1 to 2.

    Source: Luo et al. 2023, arXiv:2310.04378.
    """

    kind: Literal["lcm"] = "lcm"
    most_steps: ClassVar[int] = 50  # those of the distillation, of which it takes some

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """An `LCMScheduler`."""
        from diffusers import LCMScheduler

        return LCMScheduler.from_config(dict(config))


class Tcd(Sampler):
    """For LoRAs that were distilled by trajectory consistency, such as Hyper-SD's: 1 to 8 steps, guidance 1.

    Source: Zheng et al. 2024, arXiv:2402.19159.
    """

    kind: Literal["tcd"] = "tcd"
    most_steps: ClassVar[int] = 50

    def scheduler(self, config: Mapping[str, object]) -> Any:
        """A `TCDScheduler`."""
        from diffusers import TCDScheduler

        return TCDScheduler.from_config(dict(config))


SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Ddim(),
    "ddpm": Ddpm(),
    "dpm++_2m": DpmPlusPlus2M(),
    "dpm++_2m_karras": DpmPlusPlus2M(karras=True),
    "dpm++_2m_sde": DpmPlusPlus2MSde(),
    "dpm++_2m_sde_karras": DpmPlusPlus2MSde(karras=True),
    "euler": Euler(),
    "euler_karras": Euler(karras=True),
    "euler_a": EulerA(),
    "lcm": Lcm(),
    "tcd": Tcd(),
    "unipc": UniPc(),
}
"""The solvers as one word each, for the command line."""

TITLES: Final[Mapping[str, str]] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpm++_2m": "DPM++ 2M",
    "dpm++_2m_karras": "DPM++ 2M Karras",
    "dpm++_2m_sde": "DPM++ 2M SDE",
    "dpm++_2m_sde_karras": "DPM++ 2M SDE Karras",
    "euler": "Euler",
    "euler_karras": "Euler Karras",
    "euler_a": "Euler a",
    "lcm": "LCM",
    "tcd": "TCD",
    "unipc": "UniPC",
}
"""The same as people write them."""

_SAME: Final = {"dpmsolver++": "dpm++_2m"}  # sd-scripts' own names


def word_of(name: str) -> str:
    """The one word for a solver, by any of the names that people and programs give it.

    Raises:
        RecipeError: there is no such solver.
    """
    letters = _letters(name)
    for word in SAMPLERS:
        if letters == _letters(word):
            return word
    if letters in _SAME:
        return _SAME[letters]
    raise RecipeError(
        f"There is no sampler called {name!r}.", where="--sampler", mend=f"Choose among: {', '.join(TITLES.values())}."
    )


def title_of(sampler: Sampler) -> str:
    """How people write a solver's name."""
    return next((TITLES[word] for word, known in SAMPLERS.items() if known == sampler), str(sampler))


def _letters(name: str) -> str:
    """What is left of a name once programs' habits are taken from it: `k_dpmpp_2m` is `DPM++ 2M`."""
    plain = re.sub(r"^k[_ ]", "", name.strip().lower()).replace("dpmpp", "dpm++").replace("ancestral", "a")
    return re.sub(r"[^a-z0-9+]", "", plain)


AnySampler = Annotated[
    Ddim | Ddpm | Euler | EulerA | DpmPlusPlus2M | DpmPlusPlus2MSde | UniPc | Lcm | Tcd, Field(discriminator="kind")
]
