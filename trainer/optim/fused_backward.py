"""Weights that are moved one tensor at a time, on demand as soon as its gradient is there."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from typing_extensions import override

from trainer.core.seeds import Seeds
from trainer.optim.rounding import round_by_chance

_MOVES = "moves"  # key of the first group: how often all weights were moved; what follows from it resumes with it


class OneByOne(Optimizer):
    """Any optimiser that treats each tensor by itself, made to move them one by one.

    A bfloat16 parameter is moved by way of a float32 copy of it alone, which is then rounded by chance; the optimiser's
    own state is as for float32. So besides weights and state, memory holds one tensor more.
    """

    def __init__(self, inner: Optimizer, seeds: Seeds, clip_norm: float | None) -> None:
        """Nothing is moved yet.

        Args:
            inner: the optimiser, over the parameters as they are.
            seeds: the chance of rounding.
            clip_norm: the longest gradient of a tensor, each by itself; None: gradients are clipped elsewhere.
        """
        # of the base class nothing is wanted but its name: groups and state are those of `inner`
        self._inner = inner
        self._seeds = seeds
        self._clip_norm = clip_norm
        self._places: dict[Parameter, tuple[int, int]] = {}  # group, and place in the order of all
        for number, group in enumerate(inner.param_groups):
            for parameter in group["params"]:
                self._places[parameter] = number, len(self._places)
        inner.param_groups[0].setdefault(_MOVES, 0)
        self.fused = False
        self._still = False
        self._squares = torch.zeros(())  # of the gradients since the last step, summed

    def fuse(self) -> None:
        """From now on each parameter is moved in the backward pass, when its gradient is whole, which is then freed.

        Needs one backward pass a step: no summing of batches, and no averaging over processes.
        """
        self.fused = True
        for parameter in self._places:
            parameter.register_post_accumulate_grad_hook(self._move)

    @contextmanager
    def standing_still(self) -> Generator[None, None, None]:
        """Inside, gradients are forgotten as they come, and no weight moves."""
        self._still = True
        try:
            yield
        finally:
            self._still = False

    @property
    def norm(self) -> Tensor:
        """The length, [], of the gradients by which weights were moved since the last step, before any clipping.

        Where it is not finite, the tensors at fault were moved by a gradient of 0: end the run.
        """
        return self._squares.sqrt()

    @override
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that still has a gradient; of fused ones none has."""
        for parameter in self._places:
            if parameter.grad is not None:
                self._move(parameter)
        self._inner.param_groups[0][_MOVES] += 1
        self._squares = torch.zeros(())

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for parameter in self._places:
            parameter.grad = None

    @override
    def state_dict(self) -> dict[str, Any]:  # Any: as torch has it
        """The inner optimiser's, with the number of moves."""
        return self._inner.state_dict()

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the state as if all parameters were float32, as it was made; torch goes by their number format."""
        own = [list(group["params"]) for group in self._inner.param_groups]
        bearers = {parameter: _in_float32(parameter) for parameter in self._places}
        for group, parameters in zip(self._inner.param_groups, own, strict=True):
            group["params"] = [bearers[parameter] for parameter in parameters]
        try:
            self._inner.load_state_dict(dict(state_dict))
        finally:
            for group, parameters in zip(self._inner.param_groups, own, strict=True):
                group["params"] = parameters
        state = self._inner.state
        for parameter, bearer in bearers.items():
            if bearer in state:
                state[parameter] = state.pop(bearer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner optimiser's."""
        return self._inner.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner optimiser's, by parameter."""
        return self._inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner optimiser's."""
        return self._inner.defaults

    @torch.no_grad()
    def _move(self, parameter: Parameter) -> None:
        """Move one parameter by its gradient, and free that."""
        gradient = parameter.grad
        if gradient is None:
            return
        parameter.grad = None
        if self._still:
            return
        gradient = self._shortened(gradient.float())
        if parameter.dtype == torch.float32:
            parameter.grad = gradient
            self._step_alone(parameter, parameter)
        else:
            exact = Parameter(parameter.detach().float())
            exact.grad = gradient
            self._step_alone(parameter, exact)
            moves, place = self._inner.param_groups[0][_MOVES], self._places[parameter][1]
            round_by_chance(exact.detach(), parameter.detach(), self._seeds.integer("rounding", moves, place))
        parameter.grad = None

    def _step_alone(self, parameter: Parameter, bearer: Parameter) -> None:
        """One step of the inner optimiser as if `bearer`, which stands for `parameter`, were all that it has."""
        state = self._inner.state
        if bearer is not parameter and parameter in state:
            state[bearer] = state.pop(parameter)
        with self._only(self._places[parameter][0], bearer):
            self._inner.step()
        if bearer is not parameter and bearer in state:
            state[parameter] = state.pop(bearer)

    @contextmanager
    def _only(self, number: int, bearer: Parameter) -> Generator[None, None, None]:
        groups = self._inner.param_groups
        group, all_of_group = groups[number], groups[number]["params"]
        group["params"] = [bearer]
        self._inner.param_groups = [group]
        try:
            yield
        finally:
            group["params"] = all_of_group
            self._inner.param_groups = groups

    def _shortened(self, gradient: Tensor) -> Tensor:
        """The gradient, no longer than allowed, and 0 where it is not finite; nothing here waits for the device."""
        norm = torch.linalg.vector_norm(gradient)
        self._squares = self._squares.to(norm.device) + norm.square()
        gradient.masked_fill_(~norm.isfinite(), 0.0)  # weights never take a NaN
        if self._clip_norm is not None:
            gradient.mul_((self._clip_norm / (norm + 1e-6)).clamp(max=1.0).nan_to_num(0.0))
        return gradient


def _in_float32(parameter: Parameter) -> Parameter:
    """What stands for a parameter of another number format: of its shape and device, and of no size in memory."""
    if parameter.dtype == torch.float32:
        return parameter
    return Parameter(torch.empty((), device=parameter.device).expand(parameter.shape))
