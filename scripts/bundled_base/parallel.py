"""Data-parallel training over single-thread processes, which do not stall one another on busy cores."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """The processes that train together; a team of one talks to nobody."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over the team."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.sum_up(gradients)
        for gradient in gradients:
            gradient /= self.size

    def sum_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the team."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))

    def agree(self, value: float) -> float:
        """Return the leader's value to every member."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return float(shared.item())


def join_team(rank: int, size: int, port: int) -> Team:
    """Return this process's place in the team once all members have met on the local port."""
    if size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        distributed.init_process_group("gloo", rank=rank, world_size=size)
    return Team(rank, size)
