"""Imports of libraries that would do more than be imported."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache, partial, wraps
from types import FunctionType, ModuleType
from typing import Any, Final

import torch
from torch.optim import Optimizer
from torch.utils import checkpoint

from trainer.core.collecting import without_collecting

Function = Callable[..., Any]  # whatever a library gives to torch's compiler

_COMPILER: Final = "torch._dynamo"
_ALONE: Final = ("config", "_trace_wrapped_higher_order_op")  # parts of it that torch and transformers need at once
_waiting: list[tuple[str, Any]] = []  # what was marked so while there was no compiler
_MARKS: Final = ("allow_in_graph", "assume_constant_result")  # how libraries say what it shall not look into


def import_libraries(*, networks: bool = True) -> None:
    """Bitsandbytes, diffusers and peft are imported, and torch's compiler will be when something is compiled.

    They tell the compiler what to leave alone, which imports it with all that it needs: a quarter of the time until a
    run's first step, for a compiler that most runs never call. To be called before the first import of diffusers, peft
    or bitsandbytes.

    Args:
        networks: diffusers and peft too; False where a mistake may still be found before they are needed.
    """
    last = "diffusers" if networks else "bitsandbytes"
    if last in sys.modules or (_COMPILER in sys.modules and "bitsandbytes" not in sys.modules):
        return
    with without_collecting(), _stand_in().in_place(), _compiling_later():
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportUnusedImport]

        if networks:
            import diffusers

            _ = diffusers.UNet2DConditionModel  # comes with peft, and that with transformers


@cache
def _stand_in() -> "_StandIn":
    """The one of this process."""
    stand_in = _StandIn()
    for function in (*vars(Optimizer).values(), *vars(checkpoint).values()):  # marked when torch itself was imported
        within = getattr(function, "__wrapped__", None)
        if isinstance(within, FunctionType):
            vars(within).setdefault("__dynamo_disable", stand_in.disable(within))  # where torch looks first
    return stand_in


def import_compiler() -> Any:
    """Torch's compiler, `torch._dynamo`, which knows what libraries have marked before it was there."""
    if isinstance(sys.modules.get(_COMPILER), _StandIn):
        del sys.modules[_COMPILER]
    compiler: Any = importlib.import_module(_COMPILER)
    while _waiting and all(hasattr(compiler, mark) for mark in _MARKS):  # it asks for itself while it is imported
        mark, something = _waiting.pop()
        getattr(compiler, mark)(something)
    return compiler


class _StandIn(ModuleType):
    """Stands where torch's compiler will be, and fetches it where more is asked of it than is here.

    Its few parts that are needed without it are there, and what libraries mark for it is kept until it comes.
    """

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        for mark in _MARKS:
            setattr(self, mark, partial(_marked_later, mark))
        found = importlib.util.find_spec(_COMPILER)
        self.__path__ = list(found.submodule_search_locations or ()) if found else []

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Inside, libraries that import the compiler get this; outside, it is an attribute of torch and no more.

        Where the compiler has come, it stays.
        """
        if self._has_come():
            yield
            return
        mark_at_once = torch._disable_dynamo  # pyright: ignore[reportPrivateUsage]
        sys.modules[_COMPILER] = self
        torch.__dict__.update(_dynamo=self, _disable_dynamo=self.disable)
        try:
            for name in _ALONE:
                with suppress(ModuleNotFoundError):  # torch has moved it: then the compiler comes at once
                    importlib.import_module(f"{_COMPILER}.{name}")
            yield
        finally:
            torch.__dict__.update(_disable_dynamo=mark_at_once)
            if not self._has_come():
                sys.modules.pop(_COMPILER, None)

    def disable(self, function: Any = None, recursive: bool = True, **words: Any) -> Any:
        """What is made of a function that is never to be compiled: while there is no compiler, the function itself."""
        if function is None:
            return partial(self.disable, recursive=recursive, **words)
        if not isinstance(function, FunctionType):  # a class or a network would be changed in its place
            return import_compiler().disable(function, recursive, **words)
        disabled: list[Function] = []

        @wraps(function)
        def outer(*given: Any, **named: Any) -> Any:
            if not self._has_come():
                return function(*given, **named)
            if not disabled:
                disabled.append(import_compiler().disable(function, recursive, **words))
            return disabled[0](*given, **named)

        return outer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system and others look for in any module
            raise AttributeError(name)
        return getattr(import_compiler(), name)

    def _has_come(self) -> bool:
        return sys.modules.get(_COMPILER, self) is not self


def _marked_later(mark: str, something: Any) -> Any:
    _waiting.append((mark, something))
    return something


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
