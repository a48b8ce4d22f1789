"""Tests for imports that would do more than import."""

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from trainer.core.importing import import_bitsandbytes


def test_importing_bitsandbytes_leaves_torchs_compiler_alone() -> None:
    code = (
        "import sys, torch\n"
        "from trainer.core.importing import import_bitsandbytes\n"
        "before = torch.compile\n"
        "import_bitsandbytes()\n"
        "assert torch.compile is before\n"
        "print('bitsandbytes' in sys.modules, 'torch._inductor.compile_fx' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("settings", [{}, {"dynamic": True}])
def test_what_a_library_has_compiled_is_compiled_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, bool]
) -> None:
    asked: list[object] = []

    class Library(ModuleType):
        """Decorates one function while it is imported, as bitsandbytes does."""

    def compile_at_once(model: object, **given: object) -> object:
        asked.append(given)
        return model

    def one_more(number: int) -> int:
        return number + 1

    monkeypatch.setattr(torch, "compile", compile_at_once)
    library = Library("bitsandbytes")

    def find(name: str, *_: object) -> ModuleType:
        assert name == "bitsandbytes"
        marking: Callable[..., Callable[..., int]] = vars(torch)["compile"]
        vars(library)["one_more"] = marking(**settings)(one_more) if settings else marking(one_more)
        return library

    monkeypatch.setattr("builtins.__import__", find)
    import_bitsandbytes()
    monkeypatch.undo()
    assert not asked
    assert [vars(library)["one_more"](number) for number in (1, 2)] == [2, 3]
    assert asked == [settings]
