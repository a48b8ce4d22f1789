"""Imports of libraries that would do more than be imported."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch

Function = Callable[..., Any]  # whatever a library gives to torch.compile


def import_bitsandbytes() -> None:
    """Bitsandbytes is imported, and what it lets torch compile waits for its first call.

    It asks torch to compile some functions while it is imported, which imports torch's whole compiler: a quarter of the
    libraries' time, for functions that training on the usual devices never calls. To be called before diffusers and
    peft, which import bitsandbytes where it is there.
    """
    with _compiling_later():
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportUnusedImport]


@contextmanager
def _compiling_later() -> Generator[None, None, None]:
    """Inside, torch.compile gives functions that are compiled when they are first called."""
    at_once = torch.compile

    def later(model: Function | None = None, **settings: Any) -> Function:
        if model is None:
            return partial(later, **settings)
        compiled: list[Function] = []

        @wraps(model)
        def first_compiled(*given: Any, **named: Any) -> Any:
            if not compiled:
                compiled.append(at_once(model, **settings))
            return compiled[0](*given, **named)

        return first_compiled

    torch.compile = later
    try:
        yield
    finally:
        torch.compile = at_once
