"""The next batches are made while the device is busy with this one."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from trainer.batch import Batch
from trainer.core.seeds import Seeds
from trainer.data.batches import CachedBatches
from trainer.families.model import DiffusionModel
from trainer.objective.objective import Drawn, Objective

_DEPTH = 2  # batches that may wait; each weighs as little as its latents and words

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """All that one pass eats; a pure function of the batch's number."""

    batch: Batch
    drawn: Drawn
    layers: int  # the seed of layers with chance of their own, such as dropout


def making(
    batches: CachedBatches, objective: Objective, model: DiffusionModel, seeds: Seeds, rank: int
) -> Callable[[int], Ready]:
    """The function that makes what the pass over batch number so and so eats, on the CPU."""

    def make(number: int) -> Ready:
        batch = batches.numbered(number)
        return Ready(
            batch=batch,
            drawn=objective.draw(batch, model.schedule, model.prediction, seeds),
            layers=seeds.integer("layers", number, rank),
        )

    return make


def each_tensor(value: Value, deed: Callable[[Tensor], Tensor]) -> Value:
    """The same dataclass with `deed` done to each tensor in it, at whatever depth; once to one that is there twice."""
    done: dict[Tensor, Tensor] = {}

    def changed(part: Any) -> Any:  # fields are of any type
        if isinstance(part, Tensor):
            return done[part] if part in done else done.setdefault(part, deed(part))
        if not is_dataclass(part) or isinstance(part, type):
            return part
        return replace(part, **{field.name: changed(getattr(part, field.name)) for field in fields(part)})

    return changed(value)


class Ahead:
    """Makes batches in a thread of its own, a few ahead of the one that is asked for.

    Since each is a pure function of its number, who makes it and when changes nothing. What goes wrong there is raised
    here, when the batch is asked for whose making failed.
    """

    def __init__(self, make: Callable[[int], Ready], device: torch.device, *, end: int, depth: int = _DEPTH) -> None:
        """Nothing is made yet.

        Args:
            make: what batch `number` is made of, on the CPU.
            device: where it is wanted.
            end: the number of batches in the run; none beyond is made.
            depth: how many are made ahead.
        """
        self._make = make
        self._device = device
        self._end = end
        self._depth = depth
        self._alone = Lock()
        self._coming: dict[int, Future[Ready]] = {}
        self._maker = ThreadPoolExecutor(1, "batches", initializer=partial(_settle, device))

    def take(self, number: int) -> Ready:
        """What batch `number` is made of, on the device; copies are under way and not waited for.

        Raises:
            TrainerError: what making it raised.
        """
        for old in [place for place in self._coming if place < number]:
            self._coming.pop(old).cancel()
        for place in range(number, max(number + 1, min(number + 1 + self._depth, self._end))):
            if place not in self._coming:
                self._coming[place] = self._maker.submit(self._made, place)
        ready = self._coming.pop(number).result()
        ahead = self._device.type == "cuda"
        return each_tensor(ready, lambda tensor: tensor.to(self._device, non_blocking=ahead))

    @contextmanager
    def resting(self) -> Generator[None, None, None]:
        """Inside, nothing is made: the encoders, which may have to mend the cache, are somebody else's."""
        with self._alone:
            yield

    def close(self) -> None:
        """End the thread, after the batch that it is at."""
        self._maker.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _made(self, number: int) -> Ready:
        with self._alone:
            ready = self._make(number)
        # only out of pinned memory does a copy run beside the kernels
        return each_tensor(ready, Tensor.pin_memory) if self._device.type == "cuda" else ready


def _settle(device: torch.device) -> None:
    """A new thread begins on the first card, where pinning would take half a gigabyte for nothing."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
