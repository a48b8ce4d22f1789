"""Adafactor: AdamW's effect with next to no memory."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch.optim import Optimizer
from typing_extensions import Self, override

from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizer import OptimizerSettings, Share


class Adafactor(OptimizerSettings):
    """The mean of the squared gradient is kept as one number a row and one a column: for whole models.

    It begins as other programs advise for it: with a rate of its own recipe, not with Adafactor's own
    (`relative_step`). Source: Shazeer and Stern 2018, arXiv:1804.04235, Algorithm 4 and section 8.
    """

    joins: ClassVar[bool] = False  # it keeps sums over the rows and columns of each matrix

    kind: Literal["adafactor"] = "adafactor"
    weight_decay: NonNegativeFloat = 0.0
    """How strongly weights are drawn to 0, per step and rate."""
    scale_parameter: bool = False
    """Whether a weight's rate is multiplied by the size (root of the mean square) of its tensor. Not for LoRA, whose
    second matrix begins with zeros."""
    relative_step: bool = False
    """Whether the rate is 1 / sqrt(step), at most 0.01, instead of `rate` and the recipe's course of it."""
    warmup_init: bool = False
    """With relative_step: whether the rate climbs first, by 1e-6 a step."""
    clip_threshold: PositiveFloat = 1.0
    """The greatest root of the mean square of a tensor's step before the rate; longer ones are shortened to it."""
    decay_rate: Annotated[float, Field(ge=-1, le=0)] = -0.8
    """How soon squared gradients are forgotten: the share of the newest one is step ^ decay_rate."""
    beta1: Share | None = None
    """How long a mean of the gradient remembers; absent: none is kept, which saves its memory."""
    epsilon: tuple[NonNegativeFloat, PositiveFloat] = (1e-30, 1e-3)
    """Added to squared gradients; and the least size of a tensor with scale_parameter."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.relative_step and "rate" in self.model_fields_set:
            raise ValueError(
                "relative_step: true finds the rate by itself. Leave out optimizer.rate, or relative_step."
            )
        if self.warmup_init and not self.relative_step:
            raise ValueError(
                "warmup_init belongs to relative_step: true. With a rate of the recipe, say rate.warmup instead."
            )
        return self

    @override
    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """See `OptimizerSettings.build`; with `relative_step`, the rates of the groups mean nothing."""
        from transformers.optimization import Adafactor as Library

        own: dict[str, object] = {"relative_step": self.relative_step, "warmup_init": self.warmup_init}
        return Library(
            # said of each group: the library refuses a rate beside a relative step, and our groups always have one
            [group | own for group in self.torch_groups(groups)],
            lr=self.rate,
            eps=self.epsilon,
            clip_threshold=self.clip_threshold,
            decay_rate=self.decay_rate,
            beta1=self.beta1,
            weight_decay=self.weight_decay,
            scale_parameter=self.scale_parameter,
            relative_step=False,
        )
