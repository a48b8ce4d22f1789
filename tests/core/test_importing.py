"""Tests for imports that would do more than import."""

import subprocess
import sys

import pytest

AT_FIRST = (
    "import sys, torch\nfrom trainer.core.importing import import_compiler, import_libraries\nimport_libraries()\n"
)


def told_by(code: str) -> list[str]:
    """The words that a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", AT_FIRST + code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_libraries_come_without_torchs_compiler() -> None:
    before = "import sys, torch\nbefore = torch.compile, torch._disable_dynamo\n"
    code = (
        "print(*(name in sys.modules for name in ('bitsandbytes', 'diffusers', 'peft')))\n"
        "print(*(name in sys.modules for name in ('torch._dynamo', 'torch._inductor.compile_fx')))\n"
        "print(before == (torch.compile, torch._disable_dynamo))"
    )
    done = subprocess.run([sys.executable, "-c", before + AT_FIRST + code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3 + ["False"] * 2 + ["True"]


def test_what_may_end_with_a_mistake_imports_no_networks() -> None:
    code = (
        "import sys\n"
        "from trainer.core.importing import import_libraries\n"
        "import_libraries(networks=False)\n"
        "print(*(name in sys.modules for name in ('bitsandbytes', 'diffusers', 'peft', 'torch._dynamo')))\n"
        "import_libraries()\n"
        "print(*(name in sys.modules for name in ('bitsandbytes', 'diffusers', 'peft', 'torch._dynamo')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", *["False"] * 3, *["True"] * 3, "False"]


def test_eight_bit_steps_and_blocks_computed_again_do_without_the_compiler() -> None:
    code = (
        "from bitsandbytes.optim import AdamW8bit\n"
        "from torch.utils.checkpoint import checkpoint\n"
        "layer = torch.nn.Linear(64, 64)\n"
        "steps = AdamW8bit(layer.parameters())\n"
        "checkpoint(layer, torch.ones(1, 64), use_reentrant=False).sum().backward()\n"
        "steps.step()\n"
        "steps.zero_grad()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert told_by(code) == ["False"]


@pytest.mark.parametrize(
    "ask", ["import_compiler()", "torch._dynamo.is_compiling()", "torch.compile(torch.sin, backend='eager')"]
)
def test_the_compiler_learns_when_it_comes_what_libraries_have_marked(ask: str) -> None:
    code = (
        "from trainer.core import importing\n"
        "from diffusers.models.attention import BasicTransformerBlock\n"
        "from torch._dynamo import trace_rules\n"
        "print(len(importing._waiting) == 0)\n"
        "print(id(BasicTransformerBlock) in trace_rules._allowed_callable_ids)"
    )
    assert (
        told_by("print(len(sys.modules['trainer.core.importing']._waiting) > 0)\n" + ask + "\n" + code) == ["True"] * 3
    )


def test_what_is_marked_before_is_left_alone_by_the_compiler_after() -> None:
    code = (
        "from torch.utils.checkpoint import checkpoint\n"
        "graphs = []\n"
        "def backend(graph, _):\n"
        "    graphs.append(graph)\n"
        "    return graph.forward\n"
        "from torch.optim import SGD\n"
        "weight = torch.nn.Parameter(torch.ones(2))\n"
        "steps = SGD([weight])\n"
        "def work(number):\n"
        "    steps.zero_grad()\n"
        "    return number.sin() + 1\n"
        "compiled = torch.compile(work, backend=backend)\n"
        "print(torch.equal(compiled(torch.ones(3)), torch.ones(3).sin() + 1), len(graphs))\n"
        "print(hasattr(SGD.zero_grad.__wrapped__, '__dynamo_disable'))"
    )
    assert told_by(code) == ["True", "1", "True"]
