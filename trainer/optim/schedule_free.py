"""AdamW without a course of the rate: what is drawn is an average of where it has been."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.optim import Optimizer
from typing_extensions import override

from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizer import Share, WithMoments, need_library


class ScheduleFreeAdamW(WithMoments):
    """AdamW for runs whose end is not known beforehand: pictures and files are drawn from an average of its weights.

    Use it with rate: {kind: constant, warmup: ...}; averaging does what a falling rate would do. Source: Defazio et al.
    2024, arXiv:2405.15682, Algorithm 1.
    """

    apart: ClassVar[bool] = False  # it counts its steps for all tensors together

    kind: Literal["adamw_schedule_free"] = "adamw_schedule_free"
    rate: PositiveFloat = 3e-4
    """The learning rate, 1 to 10 times as high as AdamW's; keep the recipe's `rate` constant after its climb."""
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Share] = (0.9, 0.999)
    """How near to the average the gradient is taken, and how long the mean of its square remembers."""
    r: NonNegativeFloat = 0.0
    """How much more late steps count in the average: step ^ r."""
    weight_lr_power: NonNegativeFloat = 2.0
    """How much less the steps of the climb count in the average: highest rate so far ^ weight_lr_power."""

    @override
    def check(self, device: torch.device) -> None:
        """See `OptimizerSettings.check`."""
        need_library("schedulefree", "Schedule-free AdamW")

    @override
    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """See `OptimizerSettings.build`; what is to be drawn, `optim.drawn` says."""
        self.check(torch.device("cpu"))
        from schedulefree import AdamWScheduleFree

        own = {"train_mode": True}  # as its train() would set; we never leave that mode, see `optim.drawn`
        return AdamWScheduleFree(
            [group | own for group in self.torch_groups(groups)],
            lr=self.rate,
            betas=self.betas,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            r=self.r,
            weight_lr_power=self.weight_lr_power,
        )
