"""What every optimiser and every rate promises."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainer.core.errors import CheckpointError, NonFiniteError
from trainer.core.tensors import read_tensors, write_tensors
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizers import Adafactor, AdamW, AdamW8bit, AnyOptimizer, OptimizerSettings, Prodigy
from trainer.optim.rates import AnyRate, Cosine, Rate
from trainer.optim.state import pack, unpack

KINDS = get_args(get_args(AnyOptimizer)[0])
# Prodigy has one rate for all, and that is a factor
OPTIMIZERS = [member(d0=1e-3) if member is Prodigy else member(rate=1e-2) for member in KINDS]
VARIANTS = [
    Adafactor(rate=1e-2, beta1=0.9, scale_parameter=True),
    Adafactor(relative_step=True, warmup_init=True),
    Prodigy(growth_rate=1.02, slice_p=11, use_bias_correction=False, safeguard_warmup=False),
]
RATES = list(get_args(get_args(AnyRate)[0]))
# below and above bitsandbytes' border of 4096 numbers, no multiple of its block of 256, 4-D, and one that never learns
SHAPES = [(8, 16), (70, 100), (16, 32, 3, 3), (5,), (64, 65)]
NEVER_LEARNS = 3


def kind(member: object) -> str:
    return type(member).__name__


def seeded(*place: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(place))


def parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    made = [Parameter(torch.randn(*shape, generator=seeded(n)).to(dtype)) for n, shape in enumerate(SHAPES)]
    # convolutions of a channels-last network lie otherwise in memory
    made[2].data = made[2].data.to(memory_format=torch.channels_last)
    return made


def groups(weights: Sequence[Parameter], rate: float | None = None) -> list[ParameterGroup]:
    return [ParameterGroup("unet", weights[:3]), ParameterGroup("text_encoder", weights[3:], rate=rate)]


def own_rate(settings: OptimizerSettings) -> float | None:
    return None if isinstance(settings, Prodigy) else 5e-3


def step(optimizer: Optimizer, weights: Sequence[Parameter], number: int) -> None:
    for place, weight in enumerate(weights):
        if place != NEVER_LEARNS:
            gradient = torch.randn(weight.shape, generator=seeded(number, place)) * (1 + number)
            weight.grad = gradient.to(weight.dtype).to(memory_format=torch.preserve_format)
    optimizer.step()


def started(settings: OptimizerSettings, weights: Sequence[Parameter]) -> tuple[Optimizer, LambdaLR]:
    optimizer = settings.build(groups(weights, own_rate(settings)))
    return optimizer, LambdaLR(optimizer, lambda done: Cosine(warmup=2).factor(done, 9))


def through_a_file(folder: Path, packed: tuple[dict[str, Tensor], dict[str, Any]]) -> tuple[dict[str, Tensor], Any]:
    write_tensors(folder / "optimizer.safetensors", packed[0])
    return read_tensors(folder / "optimizer.safetensors"), json.loads(json.dumps(packed[1], allow_nan=False))


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=kind)
def test_groups_keep_their_names_order_and_rates(settings: OptimizerSettings) -> None:
    rate = own_rate(settings)
    optimizer = settings.build(groups(parameters(), rate))
    assert [group["name"] for group in optimizer.param_groups] == ["unet", "text_encoder"]
    assert [group["lr"] for group in optimizer.param_groups] == [settings.rate, rate or settings.rate]
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 2]
    assert not optimizer.state


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=kind)
def test_it_walks_downhill(settings: OptimizerSettings) -> None:
    weight = Parameter(torch.full((80, 80), 3.0))
    faster = settings if isinstance(settings, Prodigy) else settings.model_copy(update={"rate": 0.1})
    optimizer = faster.build([ParameterGroup("all", [weight])])
    for _ in range(200 if isinstance(settings, Prodigy) else 60):  # it has to find a rate first
        optimizer.zero_grad()
        (weight - 1).square().sum().backward()
        optimizer.step()
    assert (weight - 1).abs().max().item() < 0.2


@pytest.mark.parametrize("settings", [*OPTIMIZERS, *VARIANTS], ids=kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_packed_and_unpacked_it_goes_on_bit_for_bit(
    settings: OptimizerSettings, dtype: torch.dtype, stop: int, tmp_path: Path
) -> None:
    whole = parameters(dtype)
    optimizer, rate = started(settings, whole)
    for number in range(8):
        step(optimizer, whole, number)
        rate.step()

    first = parameters(dtype)
    optimizer, rate = started(settings, first)
    for number in range(stop):
        step(optimizer, first, number)
        rate.step()
    tensors, facts = through_a_file(tmp_path, pack(optimizer))

    second = [Parameter(weight.detach().clone()) for weight in first]
    resumed, _ = started(settings, second)
    unpack(resumed, tensors, facts)
    resumed_rate = LambdaLR(resumed, lambda done: Cosine(warmup=2).factor(done, 9), last_epoch=stop - 1 if stop else -1)
    if stop:
        resumed_rate.load_state_dict({**resumed_rate.state_dict(), "last_epoch": stop})
        for group, last in zip(resumed.param_groups, rate.get_last_lr(), strict=True):
            group["lr"] = last
    for number in range(stop, 8):
        step(resumed, second, number)
        resumed_rate.step()
    assert all(torch.equal(one, other) for one, other in zip(whole, second, strict=True))


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=kind)
def test_what_is_packed_is_packed_the_same_again(settings: OptimizerSettings) -> None:
    weights = parameters()
    optimizer = settings.build(groups(weights))
    step(optimizer, weights, 0)
    tensors, facts = pack(optimizer)
    fresh = settings.build(groups(parameters()))
    unpack(fresh, tensors, facts)
    again, facts_again = pack(fresh)
    assert facts == facts_again
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    layouts = [part.stride() for state in optimizer.state.values() for part in state.values() if torch.is_tensor(part)]
    assert layouts == [
        part.stride() for state in fresh.state.values() for part in state.values() if torch.is_tensor(part)
    ]


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=kind)
def test_a_packed_state_is_a_copy(settings: OptimizerSettings) -> None:
    weights = parameters()
    optimizer = settings.build(groups(weights))
    step(optimizer, weights, 0)
    tensors, facts = pack(optimizer)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    resumed = settings.build(groups(weights))
    unpack(resumed, tensors, facts)
    step(optimizer, weights, 1)
    step(resumed, weights, 1)
    assert all(torch.equal(before[name], tensors[name]) for name in before)


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=kind)
@pytest.mark.parametrize(
    "damage", ["missing", "extra", "shape", "dtype", "finite", "format", "optimizer", "groups", "state"]
)
def test_a_damaged_state_is_refused_and_changes_nothing(settings: OptimizerSettings, damage: str) -> None:
    weights = parameters()
    optimizer = settings.build(groups(weights))
    step(optimizer, weights, 0)
    tensors, facts = pack(optimizer)
    name = max(tensors, key=lambda name: tensors[name].numel())
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["state.99.stranger"] = torch.zeros(1)
    elif damage == "shape":
        tensors[name] = tensors[name].flatten()[1:]
    elif damage == "dtype":
        tensors[name] = tensors[name].double()
    elif damage == "finite":
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 1)
        tensors[name].view(-1)[0] = float("nan")
    elif damage == "state":
        facts["state"] = {"riddle": []}
    else:
        facts[damage] = "foreign"
    fresh = settings.build(groups(weights))
    with pytest.raises(CheckpointError, match="cannot be restored"):
        unpack(fresh, tensors, facts)
    assert not fresh.state


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=kind)
def test_a_state_for_other_parameters_is_refused(settings: OptimizerSettings) -> None:
    weights = parameters()
    optimizer = settings.build(groups(weights))
    step(optimizer, weights, 0)
    tensors, facts = pack(optimizer)
    others = [ParameterGroup("unet", weights[:2]), ParameterGroup("text_encoder", weights[2:])]
    with pytest.raises(CheckpointError, match="parameters"):
        unpack(settings.build(others), tensors, facts)


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=kind)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_spoiled_state_is_never_written(settings: OptimizerSettings, number: float) -> None:
    weights = parameters()
    optimizer = settings.build(groups(weights))
    step(optimizer, weights, 0)
    state = next(iter(optimizer.state.values()))
    tensor = next(one for one in state.values() if torch.is_tensor(one) and one.dim() and one.is_floating_point())
    tensor.view(-1)[3] = number
    with pytest.raises(NonFiniteError, match="not finite"):
        pack(optimizer)


def test_a_state_of_another_optimiser_is_refused() -> None:
    weights = parameters()
    optimizer = AdamW().build(groups(weights))
    step(optimizer, weights, 0)
    with pytest.raises(CheckpointError, match="optimizer"):
        unpack(AdamW8bit().build(groups(weights)), *pack(optimizer))


def test_eight_bits_keep_large_tensors_in_bytes_and_small_ones_whole() -> None:
    weights = parameters()
    optimizer = AdamW8bit().build(groups(weights))
    step(optimizer, weights, 0)
    dtypes = {tuple(weight.shape): state["state1"].dtype for weight, state in optimizer.state.items()}
    assert dtypes[8, 16] == torch.float32
    assert dtypes[70, 100] == torch.uint8


@pytest.mark.parametrize("member", KINDS, ids=lambda member: member.__name__)
def test_every_optimiser_is_found_by_its_kind_and_has_a_rate_that_suits_it(member: type[OptimizerSettings]) -> None:
    word = member.model_fields["kind"].default
    adapter: TypeAdapter[OptimizerSettings] = TypeAdapter(AnyOptimizer)
    assert adapter.validate_python({"kind": word}) == member()
    assert adapter.validate_json(member().model_dump_json()) == member()
    assert member.model_fields["rate"].description
    member().check(torch.device("cpu"))


@pytest.mark.parametrize("member", RATES, ids=lambda member: member.__name__)
def test_every_rate_climbs_and_then_never_rises(member: type[Rate]) -> None:
    rate = member(warmup=4)
    factors = [rate.factor(step, 20) for step in range(21)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later <= earlier for earlier, later in pairwise(factors[4:]))
    assert all(0 < factor <= 1 for factor in factors[:20])


@pytest.mark.parametrize("member", RATES, ids=lambda member: member.__name__)
@pytest.mark.parametrize(("warmup", "last"), [(0, 1), (5, 5), (9, 3), (0, 0)])
def test_short_runs_and_long_climbs_have_a_rate(member: type[Rate], warmup: int, last: int) -> None:
    assert all(0 <= member(warmup=warmup).factor(step, last) <= 1 for step in range(last + 2))
