"""Muon for the U-Net's matrices: momentum whose singular values are all brought to about one.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale of the step is that
of Liu et al. 2025 (arXiv:2502.16982), so that AdamW's learning rates carry over.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bundled_base.parallel import Team

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic of the Newton-Schulz iteration, from Jordan et al.
_ROUNDS = 5
_MOMENTUM = 0.95


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values moved to about one, [rows columns]."""
    first, third, fifth = _COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(_ROUNDS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Steps matrices and convolution kernels along their orthogonalised momentum.

    Every member of the team keeps all momenta but orthogonalises only its share of them: the rounds cost about
    a fifth of a step on one core.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float, team: Team) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._team = team

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter; each must have a gradient."""
        for group in self.param_groups:
            parameters: list[Tensor] = sorted(group["params"], key=Tensor.numel)
            updates = [torch.zeros_like(parameter) for parameter in parameters]
            for index, (parameter, update) in enumerate(zip(parameters, updates, strict=True)):
                ahead = self._momentum_ahead(parameter).flatten(1)
                if index % self._team.size == self._team.rank:
                    update.copy_(orthogonalise(ahead).view_as(update)).mul_(0.2 * max(ahead.shape) ** 0.5)
            self._team.sum_up(updates)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateUsage]
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])  # pyright: ignore[reportPrivateUsage]

    def _momentum_ahead(self, parameter: Tensor) -> Tensor:
        """Return Nesterov's look-ahead of the parameter's momentum."""
        if parameter.grad is None:
            raise ValueError("Muon needs a gradient for every parameter it was given")
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        return parameter.grad.lerp(momentum, _MOMENTUM)
