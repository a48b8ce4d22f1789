"""Moving tensors one by one is the same as moving them together, and resumes to the bit."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from trainer.core.seeds import Seeds
from trainer.optim.fused_backward import OneByOne
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizers import Adafactor, AdamW, AdamW8bit
from trainer.optim.state import pack, unpack

SETTINGS = [AdamW(rate=1e-2), AdamW8bit(rate=1e-2), Adafactor(rate=1e-2)]
every_kind = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.kind)
INPUTS = torch.randn(50, 8, 64, generator=torch.Generator().manual_seed(5))


def a_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)).to(dtype)


def optimizer_of(network: nn.Module, settings: Any, clip: float | None = None, *, fused: bool = False) -> OneByOne:
    groups = [
        ParameterGroup("unet", list(network.get_submodule("0").parameters())),
        ParameterGroup("te1", list(network.get_submodule("2").parameters()), 3e-3),
    ]
    alone = OneByOne(settings.build(groups), Seeds(3), clip)
    if fused:
        alone.fuse()
    return alone


def backward(network: nn.Module, number: int) -> None:
    given = INPUTS[number].to(next(network.parameters()).dtype)
    (network(given).float() - given.float().roll(1, -1)).square().mean().backward()


def train(network: nn.Module, optimizer: torch.optim.Optimizer, numbers: Sequence[int]) -> None:
    for number in numbers:
        backward(network, number)
        optimizer.step()
        optimizer.zero_grad()


def tensors(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


@every_kind
@pytest.mark.parametrize("fused", [False, True])
def test_float32_moves_to_the_same_bits_as_all_together(settings: Any, fused: bool) -> None:
    together, apart = a_network(), a_network()
    groups = [
        ParameterGroup("unet", list(together.get_submodule("0").parameters())),
        ParameterGroup("te1", list(together.get_submodule("2").parameters()), 3e-3),
    ]
    train(together, settings.build(groups), range(6))
    train(apart, optimizer_of(apart, settings, fused=fused), range(6))
    for one, other in zip(tensors(together), tensors(apart), strict=True):
        assert torch.equal(one, other)


@every_kind
def test_fused_or_not_is_the_same_in_bfloat16_and_frees_gradients(settings: Any) -> None:
    late, early = a_network(torch.bfloat16), a_network(torch.bfloat16)
    train(late, optimizer_of(late, settings), range(6))
    optimizer = optimizer_of(early, settings, fused=True)
    for number in range(6):
        backward(early, number)
        assert all(parameter.grad is None for parameter in early.parameters())
        optimizer.step()
    for one, other in zip(tensors(late), tensors(early), strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)
    assert all(
        not value.is_floating_point() or value.dtype == torch.float32
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def test_bfloat16_follows_float32_where_plain_rounding_would_stand_still() -> None:
    settings = AdamW(rate=2e-4, weight_decay=0)
    exact, rounded = a_network(), a_network(torch.bfloat16)
    with torch.no_grad():
        for one, other in zip(exact.parameters(), rounded.parameters(), strict=True):
            one.copy_(other)
    before = tensors(exact)
    train(exact, settings.build([ParameterGroup("unet", list(exact.parameters()))]), range(40))
    alone = OneByOne(settings.build([ParameterGroup("unet", list(rounded.parameters()))]), Seeds(0), None)
    train(rounded, alone, range(40))
    for old, one, other in zip(before, tensors(exact), tensors(rounded), strict=True):
        moved, followed = (one - old).flatten(), (other.float() - old).flatten()
        assert float(torch.nn.functional.cosine_similarity(moved, followed, dim=0)) > 0.8


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_every_stop_resumes_to_the_same_bits(settings: Any, dtype: torch.dtype, fused: bool) -> None:
    whole = a_network(dtype)
    never_stopped = optimizer_of(whole, settings, 0.5, fused=fused)
    train(whole, never_stopped, range(5))
    for stop in range(1, 5):
        first = a_network(dtype)
        before = optimizer_of(first, settings, 0.5, fused=fused)
        train(first, before, range(stop))
        packed, facts = pack(before)
        second = a_network(dtype)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        after = optimizer_of(second, settings, 0.5, fused=fused)
        unpack(after, packed, facts)
        train(second, after, range(stop, 5))
        for one, other in zip(tensors(whole), tensors(second), strict=True):
            assert torch.equal(one, other), stop
        (kept, facts), (again, same) = pack(never_stopped), pack(after)
        assert json.dumps(facts) == json.dumps(same), stop  # in the same order too: checkpoints are compared by bytes
        assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items()), stop


def test_each_tensor_is_clipped_by_itself_and_the_whole_length_is_told() -> None:
    network, reference = a_network(), a_network()
    settings = AdamW(rate=1e-2, betas=(0.0, 0.0), weight_decay=0, epsilon=1.0)  # the step tells of the gradient's size
    backward(reference, 0)
    gradients = [parameter.grad for parameter in reference.parameters()]
    length = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    before = tensors(network)
    optimizer = OneByOne(settings.build([ParameterGroup("unet", list(network.parameters()))]), Seeds(0), 0.01)
    optimizer.fuse()
    backward(network, 0)
    torch.testing.assert_close(optimizer.norm, length)
    optimizer.step()
    assert float(optimizer.norm) == 0
    for old, new, gradient in zip(before, tensors(network), gradients, strict=True):
        assert gradient is not None
        shortened = gradient * min(1.0, 0.01 / float(gradient.norm()))
        torch.testing.assert_close(old - new, 1e-2 * shortened / (shortened.abs() + 1), atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_told_and_never_reaches_a_weight(spoil: float) -> None:
    network = a_network()
    optimizer = optimizer_of(network, AdamW(rate=1e-2), 1.0, fused=True)
    (network(INPUTS[0]).sum() * spoil).backward()
    assert not bool(optimizer.norm.isfinite())
    optimizer.step()
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(network))


def test_memory_layouts_do_not_matter(a_picture: Callable[[], torch.Tensor]) -> None:
    def trained(form: torch.memory_format) -> list[torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: Any = nn.Conv2d(8, 12, 3).to(torch.bfloat16)  # Any: torch types no layout of modules
            network = network.to(memory_format=form)
        optimizer = OneByOne(
            AdamW(rate=1e-2).build([ParameterGroup("unet", list(network.parameters()))]), Seeds(0), 1.0
        )
        optimizer.fuse()
        for _ in range(3):
            network(a_picture().to(torch.bfloat16)).float().square().mean().backward()
            optimizer.step()
        return tensors(network)

    for one, other in zip(trained(torch.contiguous_format), trained(torch.channels_last), strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


@pytest.fixture
def a_picture() -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(9))
