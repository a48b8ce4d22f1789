"""AdamW with whole numbers, as torch has it."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch.optim import Optimizer
from typing_extensions import override

from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizer import WithMoments


class AdamW(WithMoments):
    """Adam with decoupled weight decay: steady, needs two numbers of float32 a weight.

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101, Algorithm 2.
    """

    shards: ClassVar[bool] = True

    kind: Literal["adamw"] = "adamw"

    @override
    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """See `OptimizerSettings.build`; on a GPU, one kernel moves many tensors."""
        on_gpu = all(parameter.is_cuda for group in groups for parameter in group.parameters)
        return torch.optim.AdamW(
            self.torch_groups(groups),
            lr=self.rate,
            betas=self.betas,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            fused=True if on_gpu else None,  # None: torch's own choice
        )
