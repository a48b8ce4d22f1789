"""A pass recorded once as a CUDA graph, and played again without the processor's help."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.batch import Conditioning
from trainer.core.log import logger
from trainer.loop.ahead import Ready, each_tensor
from trainer.loop.passing import Pass, Signature, shape_of, signature_of, tensors_of
from trainer.optim.flat import copy_each

_CLOSE = 0.02  # of the gradient's length; 16-bit sums in another order differ by less


@dataclass(slots=True)
class _Record:
    inputs: list[Tensor]
    loss: Tensor
    play: Callable[[], None]


Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs a function once so that what it gave back can do the same again on the same memory."""


class Graphs:
    """Passes that are recorded as CUDA graphs, one for each shape, and played again without the processor's help.

    A shape is recorded when it comes for the second time. A record is used only after it gave the loss and the
    gradients that the plain pass gave for the same batch; if it does not, or cannot be made, passes stay plain.
    """

    def __init__(self, parameters: Sequence[Parameter], capture: Capture | None = None) -> None:
        """Nothing is recorded yet.

        Args:
            parameters: that get gradients.
            capture: how to record; absent: as a CUDA graph. All records share the memory of what is not kept.
        """
        self._parameters = list(parameters)
        self._capture = capture
        self._seen: set[Signature] = set()
        self._records: dict[Signature, _Record] = {}
        self._gradients: list[Tensor] = []  # one memory for what every record computes
        self._given_up = False

    def __call__(self, deed: Pass, ready: Ready) -> Tensor:
        """See `Passing`."""
        signature = signature_of(ready)
        record = self._records.get(signature)
        if record is not None and not ready.batch.from_base:
            return self._play(record, ready)
        loss = deed(ready)
        can = not self._given_up and not ready.batch.from_base and isinstance(ready.batch.words, Conditioning)
        if signature in self._seen and can:
            self._try(signature, deed, ready, loss)
        self._seen.add(signature)
        return loss

    @contextmanager
    def resting(self) -> Generator[None, None, None]:
        """See `Passing`."""
        self._forget()
        yield

    def _play(self, record: _Record, ready: Ready) -> Tensor:
        copy_each(record.inputs, tensors_of(ready))
        record.play()
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                # the record's own memory is written again by the next pass
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return record.loss.clone()

    def _try(self, signature: Signature, deed: Pass, ready: Ready, loss: Tensor) -> None:
        """Record a pass that was just made plainly; gradients stay as that one left them."""
        began = time.perf_counter()
        kept = [parameter.grad for parameter in self._parameters]
        self._set_gradients([None] * len(kept))
        try:
            torch.manual_seed(ready.layers)
            deed(ready)  # its gradients alone, without those of earlier passes
            plain = self._copied_gradients()
            record = self._recorded(deed, ready)
            torch.manual_seed(ready.layers)
            record.play()
            problem = self._difference(record, loss, plain)
        except RuntimeError as error:  # whatever a capture cannot hold, running out of memory too
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
            record = None
        finally:
            self._set_gradients(kept)
        if record is None or problem:
            self._given_up = True
            self._forget()
            logger.warning("Passes are not recorded as a graph (%s); the run goes on without.", problem)
            return
        self._records[signature] = record
        logger.info("Recorded the pass for pictures of %s in %.1f s.", shape_of(ready), time.perf_counter() - began)

    def _recorded(self, deed: Pass, ready: Ready) -> _Record:
        if not self._gradients:
            self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        capture = self._capture = self._capture or cuda_capture()
        static = each_tensor(ready, Tensor.clone)
        loss = torch.zeros((), device=static.batch.latents.device)

        def whole() -> None:
            before = [parameter.grad for parameter in self._parameters]
            self._set_gradients([None] * len(before))
            loss.copy_(deed(static))
            given = [(g, p.grad) for g, p in zip(self._gradients, self._parameters, strict=True) if p.grad is not None]
            copy_each([own for own, _ in given], [gradient for _, gradient in given])
            self._set_gradients(before)

        play = capture(whole)
        return _Record(tensors_of(static), loss, play)

    def _difference(self, record: _Record, loss: Tensor, plain: Sequence[Tensor]) -> str | None:
        """Why the record may not stand for the plain pass; None where it may."""
        length = torch.stack([gradient.norm() for gradient in plain]).norm()
        pairs = zip(self._gradients, plain, strict=True)
        apart = torch.stack([(own - gradient).norm() for own, gradient in pairs]).norm()
        if not bool(apart <= _CLOSE * length):
            return f"its gradient is off by {float(apart / length):.1%}"
        if not bool((record.loss - loss).abs() <= _CLOSE * loss.abs()):
            return f"its loss is {float(record.loss):.5f} and not {float(loss):.5f}"
        return None

    def _copied_gradients(self) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self._parameters]

    def _set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _forget(self) -> None:
        """Give back the memory of all records; they are made again when they are needed."""
        self._records.clear()
        self._gradients.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def cuda_capture() -> Capture:
    """Records as CUDA graphs that share one pool of memory."""
    pool: Any = torch.cuda.graph_pool_handle()  # torch's own type of it has no name
    side = torch.cuda.Stream()

    def capture(deed: Callable[[], None]) -> Callable[[], None]:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            deed()  # libraries set themselves up in their first call on a stream, which no graph can hold
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # the thread that makes batches may pin memory meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            deed()
        return graph.replay

    return capture
