"""Prodigy: AdamW that finds its rate by itself."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch.optim import Optimizer
from typing_extensions import override

from trainer.core.errors import RecipeError
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizer import WithMoments, need_library

_LEAST, _MOST = 0.1, 10.0


class Prodigy(WithMoments):
    """AdamW that finds its rate: it learns how far weights are from where they want to be. Leave `rate` out.

    Needs four numbers of float32 a weight (see `slice_p`), and waits for the GPU twice a tensor in each step. Source:
    Mishchenko and Defazio 2023, arXiv:2306.06101, the Adam form of its algorithm.
    """

    apart: ClassVar[bool] = False  # the distance is one for all tensors

    kind: Literal["prodigy"] = "prodigy"
    rate: PositiveFloat = 1.0
    """A factor on the rate that it finds, best left at 1; the recipe's `rate` says how it runs over the steps. To
    learn faster or slower, change d_coef."""
    d_coef: PositiveFloat = 1.0
    """A factor on the distance that it guesses; 0.5 to 2."""
    d0: PositiveFloat = 1e-6
    """The distance that it begins with; too low costs steps, too high can spoil the run."""
    growth_rate: Annotated[float, Field(gt=1)] | None = None
    """How many times as large the distance may become in one step; absent: any. 1.02 is a kind of warm-up."""
    use_bias_correction: bool = True
    """Whether the means are corrected for having begun with 0, as in Adam: small steps at first."""
    safeguard_warmup: bool = True
    """Whether a low rate at the beginning, such as that of a warm-up, does not raise the distance."""
    slice_p: PositiveInt = 1
    """The distance is guessed from every so many-th number of a tensor; 11 saves almost two numbers a weight."""

    @field_validator("rate")
    @classmethod
    def _is_a_factor(cls, rate: float) -> float:
        if not _LEAST <= rate <= _MOST:
            raise ValueError(
                f"prodigy finds its rate by itself, and {rate:g} would be a factor on what it finds. Leave "
                "optimizer.rate out; to learn slower, set optimizer.d_coef to 0.5."
            )
        return rate

    @override
    def check(self, device: torch.device) -> None:
        """See `OptimizerSettings.check`."""
        need_library("prodigyopt", "Prodigy")

    @override
    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """See `OptimizerSettings.build`.

        Raises:
            RecipeError: parts have rates of their own; there is one distance for all.
        """
        self.check(torch.device("cpu"))
        from prodigyopt import Prodigy as Library

        strangers = [group.name for group in groups if group.rate not in (None, self.rate)]
        if strangers:
            raise RecipeError(
                f"Prodigy finds one rate for all parts, and the recipe gives {strangers[0]} one of its own.",
                where="adapter.rates",
                mend="Leave adapter.rates out, or use optimizer.kind=adamw_8bit.",
            )
        own = {"weight_decay": self.weight_decay}
        return Library(
            # said of each group: the library prints a line where it is told of it for all
            [group | own for group in self.torch_groups(groups)],
            lr=self.rate,
            betas=self.betas,
            eps=self.epsilon,
            d_coef=self.d_coef,
            d0=self.d0,
            growth_rate=float("inf") if self.growth_rate is None else self.growth_rate,
            use_bias_correction=self.use_bias_correction,
            safeguard_warmup=self.safeguard_warmup,
            slice_p=self.slice_p,
        )


def found_rate(group: Mapping[str, Any]) -> float:
    """The rate at which a group of any optimiser was moved: of Prodigy, `rate` times the distance that it has found."""
    return group["lr"] * group["d"] if "d_coef" in group else group["lr"]
