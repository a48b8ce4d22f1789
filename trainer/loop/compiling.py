"""Whether and how passes are compiled."""

import importlib.util
import os
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.core.errors import RecipeError
from trainer.core.importing import import_compiler
from trainer.core.log import logger
from trainer.loop.ahead import Ready
from trainer.loop.passing import Pass, Plain, Signature, shape_of, signature_of

CompileMode = Literal["auto", "off", "blocks", "graph"]

_REPEATED = frozenset({"BasicTransformerBlock", "ResnetBlock2D"})  # what a U-Net is built of, as diffusers names them
_VARIANTS = 256  # shapes and widths of one block, each of which is compiled once


class Blocks(Plain):
    """Passes through a network whose blocks `torch.compile` has fused; what is not trained runs as it is written."""

    def __init__(self, network: nn.Module, backend: str = "inductor") -> None:
        """Mark the blocks: each is compiled when it first meets a shape.

        Args:
            network: a U-Net of diffusers, its adapters in place.
            backend: of torch.compile.
        """
        config = import_compiler().config
        config.recompile_limit = max(_VARIANTS, config.recompile_limit)
        count = 0
        for module in network.modules():
            if type(module).__name__ in _REPEATED:
                module.compile(dynamic=False, backend=backend)
                count += 1
        logger.info("%d blocks are compiled when they first meet a shape; the first steps take longer.", count)
        self._known: set[Signature] = set()

    def __call__(self, deed: Pass, ready: Ready) -> Tensor:
        """See `Passing`."""
        signature = signature_of(ready)
        if signature in self._known:
            return deed(ready)
        began = time.perf_counter()
        loss = deed(ready)
        loss.item()  # wait, so that the time is the compiler's
        self._known.add(signature)
        logger.info("Compiled for pictures of %s in %.1f s.", shape_of(ready), time.perf_counter() - began)
        return loss

    @contextmanager
    def resting(self) -> Generator[None, None, None]:
        """See `Passing`."""
        with torch.compiler.set_stance("force_eager"):  # a preview is not worth compiling for
            yield


def chosen_mode(
    mode: CompileMode, device: torch.device, hindrances: Sequence[str]
) -> Literal["off", "blocks", "graph"]:
    """How passes are made; nothing is compiled yet.

    Args:
        mode: as the recipe says.
        device: where the passes run.
        hindrances: what in the recipe a record could not hold, in words such as "weights that stream".

    Raises:
        RecipeError: what the recipe asks for cannot be done here.
    """
    if mode == "auto":
        # compiled blocks were no gain on a CPU; nothing has been measured on a GPU yet, and a choice that nobody has
        # measured is not made for others
        return "off"
    if mode == "graph" and (device.type != "cuda" or hindrances):
        wrong = hindrances if device.type == "cuda" else [f"the device {device.type}"]
        raise _cannot(f"Passes are recorded as graphs on CUDA alone, and not with {', '.join(wrong)}.")
    if mode == "blocks" and not _has_compiler(device):
        tool = "Triton" if device.type == "cuda" else "a C++ compiler"
        raise _cannot(f"torch.compile needs {tool}, and there is none.")
    return mode


def _has_compiler(device: torch.device) -> bool:
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))


def _cannot(what: str) -> RecipeError:
    return RecipeError(what, where="compile", mend="Use compile: auto, which takes what works here.")
