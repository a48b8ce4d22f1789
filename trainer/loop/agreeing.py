"""All processes of a run stop after the same step."""

from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from trainer.loop.processes import PATIENCE
from trainer.loop.stopping import Stopper


class Agreement:
    """What signal stops the run: of one process its own, of several one that any of them got, for all at once.

    A process that stops by itself would leave the others waiting for its gradients. So after each step every process
    says whether it got a signal, and hears what all said after the step before: what all agree on is one step old, and
    nobody waits for it, neither for the device (it travels between processors) nor, as a rule, for the others.
    """

    def __init__(self, stopper: Stopper, processes: int) -> None:
        """All processes must make one at the same time.

        Args:
            stopper: where this process notes a signal.
            processes: how many there are.
        """
        self._stopper = stopper
        self._agreed: int | None = None
        self._group: Any = None  # torch's, which it types loosely
        self._said: tuple[torch.Tensor, Any] | None = None  # under way
        if processes > 1:
            from torch import distributed

            self._group = distributed.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def asked(self) -> int | None:
        """The signal that stops the run, or None."""
        return self._stopper.asked if self._group is None else self._agreed

    def exchange(self) -> None:
        """Say what this process knows, and hear what all knew one step ago; due once after each step."""
        if self._group is None:
            return
        from torch import distributed

        self._hear()
        said = torch.tensor([self._stopper.asked or 0])
        work = distributed.all_reduce(said, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._said = said, work

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:  # else the others may not be there any more
            self._hear()

    def _hear(self) -> None:
        if self._said is None:
            return
        said, work = self._said
        self._said = None
        work.wait()
        number = int(said.item())  # of the greatest signal; 0: none
        self._agreed = self._agreed or number or None
