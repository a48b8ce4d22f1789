"""The optimisers of bitsandbytes, which keep their numbers in 8 bits or let them leave the GPU."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch.nn import Parameter
from torch.optim import Optimizer
from typing_extensions import override

from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizer import Share, TorchGroup, WithDecay, WithMoments, cannot_run, first_line

_TRIAL: Final = 1 << 17  # weights: as many as it takes until bitsandbytes keeps 8 bits, and pages them


class _Bitsandbytes(WithDecay, ABC):
    """An optimiser that bitsandbytes brings."""

    @abstractmethod
    def made(self, groups: list[TorchGroup]) -> Optimizer:
        """The optimiser of these groups.

        Raises:
            ImportError: bitsandbytes is missing.
            RuntimeError: it does not fit this machine.
        """

    @override
    def build(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """See `OptimizerSettings.build`."""
        devices = {parameter.device for group in groups for parameter in group.parameters}
        for device in sorted(devices, key=str):
            self.check(device)
        return self.made(self.torch_groups(groups))

    @override
    def check(self, device: torch.device) -> None:
        """See `OptimizerSettings.check`."""
        # Without its native library bitsandbytes fails at the first step, after minutes of loading: try one now.
        trial = Parameter(torch.zeros(_TRIAL, device=device))
        trial.grad = torch.ones_like(trial)
        try:
            with warnings.catch_warnings():
                # that a CPU pages nothing: nothing is to be done about it
                warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
                self.made([{"params": [trial], "lr": self.rate}]).step()
        except ImportError as error:
            raise self._cannot("bitsandbytes cannot be imported", error) from error
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise self._cannot(f"bitsandbytes cannot work on {device.type}", error) from error

    def _cannot(self, what: str, error: Exception) -> Exception:
        return cannot_run(
            f"This optimiser cannot run here: {what}",
            first_line(error),
            "Use optimizer.kind=adamw, or install the bitsandbytes that fits this machine.",
        )


def _unwaiting(library: Any) -> Any:  # Any: a class of bitsandbytes, which types little
    """The same optimiser without waiting for the GPU after each tensor, which only paged numbers need."""

    class Unwaiting(library):
        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            if not self.initialized:
                self.check_overrides()
                self.initialized = True
            for gindex, group in enumerate(self.param_groups):
                for pindex, parameter in enumerate(group["params"]):
                    if parameter.grad is not None:
                        if not self.state[parameter]:
                            self.init_state(group, parameter, gindex, pindex)
                        self.update_step(group, parameter, gindex, pindex)

    Unwaiting.__name__ = library.__name__  # checkpoints say by this name whose state they hold
    return Unwaiting


class AdamW8bit(WithMoments, _Bitsandbytes):
    """AdamW with a quarter of the memory: its two numbers a weight are kept in 8 bits each, in blocks of 256.

    Tensors of fewer than 4,096 weights keep 32 bits. Source: Dettmers et al. 2021, arXiv:2110.02861.
    """

    kind: Literal["adamw_8bit"] = "adamw_8bit"

    @override
    def made(self, groups: list[TorchGroup]) -> Optimizer:
        """See `_Bitsandbytes.made`."""
        from bitsandbytes.optim import AdamW8bit as Library

        return _unwaiting(Library)(
            groups, lr=self.rate, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay
        )


class PagedAdamW8bit(WithMoments, _Bitsandbytes):
    """AdamW in 8 bits, whose numbers move to the processor's memory while the GPU needs the room.

    For whole models; the numbers of an adapter are few. Only on GPUs of NVIDIA; elsewhere it is plain AdamW in 8 bits.
    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3, on paged optimisers.
    """

    kind: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"

    @override
    def made(self, groups: list[TorchGroup]) -> Optimizer:
        """See `_Bitsandbytes.made`."""
        from bitsandbytes.optim import PagedAdamW8bit as Library

        return Library(groups, lr=self.rate, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay)


class _Lion(_Bitsandbytes, ABC):
    """Every weight moves by the same amount, up or down, as the sign of a mean of its gradients says.

    Source: Chen et al. 2023, arXiv:2302.06675, Algorithm 2.
    """

    rate: PositiveFloat = 2e-5
    """The learning rate at its height, 3 to 10 times lower than AdamW's; the recipe's `rate` says how it runs over the
    steps."""
    weight_decay: NonNegativeFloat = 0.05
    """How strongly weights are drawn to 0, per step and rate; 3 to 10 times as strongly as with AdamW."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """How much the mean of the gradients counts beside the newest one in a step, and how long it remembers."""


class Lion(_Lion):
    """Every weight moves by the rate, up or down: half of AdamW's memory, one number of float32 a weight.

    Source: Chen et al. 2023, arXiv:2302.06675, Algorithm 2.
    """

    kind: Literal["lion"] = "lion"

    @override
    def made(self, groups: list[TorchGroup]) -> Optimizer:
        """See `_Bitsandbytes.made`."""
        from bitsandbytes.optim import Lion as Library

        decay: Any = self.weight_decay  # the library's type is that of its default, 0
        return _unwaiting(Library)(groups, lr=self.rate, betas=self.betas, weight_decay=decay)


class Lion8bit(_Lion):
    """Lion with an eighth of AdamW's memory: its number a weight is kept in 8 bits, in blocks of 256.

    Tensors of fewer than 4,096 weights keep 32 bits. Source: Chen et al. 2023, arXiv:2302.06675, Algorithm 2; Dettmers
    et al. 2021, arXiv:2110.02861.
    """

    kind: Literal["lion_8bit"] = "lion_8bit"

    @override
    def made(self, groups: list[TorchGroup]) -> Optimizer:
        """See `_Bitsandbytes.made`."""
        from bitsandbytes.optim import Lion8bit as Library

        decay: Any = self.weight_decay  # the library's type is that of its default, 0
        return _unwaiting(Library)(groups, lr=self.rate, betas=self.betas, weight_decay=decay)
