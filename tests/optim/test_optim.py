"""Numbers of the optimisers and rates, and what happens where a library cannot work."""

import math
import sys
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch.nn import Parameter

from trainer.core.errors import RecipeError
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizers import (
    Adafactor,
    AdamW,
    AdamW8bit,
    Lion,
    Lion8bit,
    OptimizerSettings,
    PagedAdamW8bit,
    Prodigy,
    ScheduleFreeAdamW,
)
from trainer.optim.rates import Constant, Cosine, Linear, Polynomial, WarmupStableDecay
from trainer.optim.state import pack, unpack


def walked(settings: OptimizerSettings, gradients: list[float], dtype: torch.dtype = torch.float64) -> float:
    """Where a weight of 2 is after one step a gradient, at its group's rate of 0.2."""
    weight = Parameter(torch.tensor([2.0], dtype=dtype))
    optimizer = settings.build([ParameterGroup("all", [weight], rate=0.2)])
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=dtype)
        optimizer.step()
    return weight.item()


def test_adamw_is_the_algorithm_of_the_paper() -> None:
    """Loshchilov and Hutter 2017, Algorithm 2, two steps by hand."""
    settings = AdamW(rate=0.1, weight_decay=0.5, betas=(0.8, 0.9), epsilon=1e-3)
    theta, m, v = 2.0, 0.0, 0.0
    for step, gradient in enumerate([3.0, -1.0], start=1):
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        theta -= 0.2 * 0.5 * theta
        theta -= 0.2 * (m / (1 - 0.8**step)) / (math.sqrt(v / (1 - 0.9**step)) + 1e-3)
    assert walked(settings, [3.0, -1.0]) == pytest.approx(theta)


def test_paged_adamw_is_adamw_in_8_bits() -> None:
    one, other = Parameter(torch.full((64, 128), 2.0)), Parameter(torch.full((64, 128), 2.0))
    for weight, settings in ((one, AdamW8bit(rate=0.1)), (other, PagedAdamW8bit(rate=0.1))):
        optimizer = settings.build([ParameterGroup("all", [weight])])
        weight.grad = torch.linspace(-1, 1, 8192).view(64, 128)
        optimizer.step()
    assert torch.equal(one, other)


@pytest.mark.parametrize("member", [Lion, Lion8bit])
def test_lion_is_the_algorithm_of_the_paper(member: type[Lion] | type[Lion8bit]) -> None:
    """Chen et al. 2023, Algorithm 2, three steps by hand; the mean outvotes the second gradient, not the third."""
    settings = member(rate=0.1, weight_decay=0.5, betas=(0.6, 0.8))
    theta, m = 2.0, 0.0
    for gradient in (3.0, -0.5, -9.0):
        towards = 0.6 * m + 0.4 * gradient
        m = 0.8 * m + 0.2 * gradient
        theta -= 0.2 * (math.copysign(1, towards) + 0.5 * theta)
    assert walked(settings, [3.0, -0.5, -9.0], torch.float32) == pytest.approx(theta, rel=1e-5)


def test_adafactor_is_the_algorithm_of_the_paper() -> None:
    """Shazeer and Stern 2018, Algorithm 4 with clipping (section 6) and a fixed rate, two steps by hand."""
    weight = Parameter(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64))
    settings = Adafactor(clip_threshold=0.9, epsilon=(1e-6, 1e-3), weight_decay=0.1)
    optimizer = settings.build([ParameterGroup("all", [weight], rate=0.2)])
    theta, rows, columns = weight.detach().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for step in (1, 2):
        gradient = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64) * step
        weight.grad = gradient.clone()
        optimizer.step()
        kept = 1 - step**-0.8
        square = gradient.square() + 1e-6
        rows = kept * rows + (1 - kept) * square.mean(1)
        columns = kept * columns + (1 - kept) * square.mean(0)
        change = gradient / (rows[:, None] * columns[None] / rows.mean()).sqrt()
        change /= max(1.0, change.square().mean().sqrt().item() / 0.9)
        theta = theta - 0.2 * 0.1 * theta - 0.2 * change
    torch.testing.assert_close(weight.detach(), theta)


def test_adafactor_may_find_its_rate_itself() -> None:
    """Section 8: at most 0.01, and 1 / sqrt(step) after 10,000; a climb of 1e-6 a step with warmup_init."""
    for warmup, expected in ((False, 0.01), (True, 1e-6)):
        weight = Parameter(torch.full((4, 4), 5.0))
        optimizer = Adafactor(relative_step=True, warmup_init=warmup).build([ParameterGroup("all", [weight], rate=7.0)])
        weight.grad = torch.ones(4, 4)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), torch.full((4, 4), 5.0 - expected))


def test_prodigy_is_the_algorithm_of_the_paper() -> None:
    """Mishchenko and Defazio 2023, the Adam form without its corrections, three steps by hand."""
    settings = Prodigy(d0=0.01, betas=(0.8, 0.9), weight_decay=0, use_bias_correction=False, safeguard_warmup=False)
    weight = Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = settings.build([ParameterGroup("all", [weight])])
    theta, m, v, s, r, d = 2.0, 0.0, 0.0, 0.0, 0.0, 0.01
    for gradient in (3.0, 2.0, 2.5):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        m, v = 0.8 * m + 0.2 * d * gradient, 0.9 * v + 0.1 * (d * gradient) ** 2
        # the library leaves the factor (1 - sqrt(beta2)) out of both sums, whose ratio alone counts
        root = math.sqrt(0.9)
        r = root * r + d / 0.01 * d * gradient * (2.0 - theta)
        s = root * s + d / 0.01 * d * gradient
        before, d = d, max(d, r / abs(s))
        theta -= before * m / (math.sqrt(v) + d * 1e-8)
    assert weight.item() == pytest.approx(theta)
    assert optimizer.param_groups[0]["d"] == pytest.approx(d)


def test_prodigy_finds_a_rate_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    weight = Parameter(torch.full((50,), 3.0))
    optimizer = Prodigy(weight_decay=0.1, growth_rate=1.5).build([ParameterGroup("all", [weight])])
    for _ in range(30):
        weight.grad = 2 * (weight.detach() - 1)
        optimizer.step()
    distance = optimizer.param_groups[0]["d"]
    assert 1e-6 < distance <= 1e-6 * 1.5**30
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("rate", [1e-4, 11.0])
def test_a_rate_that_prodigy_would_take_for_a_factor_is_refused(rate: float) -> None:
    with pytest.raises(ValidationError, match=r"finds its rate by itself.*Leave optimizer\.rate out"):
        Prodigy(rate=rate)


def test_parts_with_rates_of_their_own_are_refused_where_there_is_one_for_all() -> None:
    groups = [
        ParameterGroup("unet", [Parameter(torch.ones(3))]),
        ParameterGroup("te1", [Parameter(torch.ones(3))], 0.5),
    ]
    with pytest.raises(RecipeError, match="gives te1 one of its own") as caught:
        Prodigy().build(groups)
    assert caught.value.where == "adapter.rates"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"relative_step": True, "rate": 1e-3}, r"Leave out optimizer\.rate"),
        ({"warmup_init": True}, r"rate\.warmup"),
    ],
)
def test_contradictions_of_adafactor_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Adafactor.model_validate(settings)


def test_infinite_options_pass_through_a_checkpoint() -> None:
    weight = Parameter(torch.ones(3))
    optimizer = Prodigy().build([ParameterGroup("all", [weight])])
    _, facts = pack(optimizer)
    fresh = Prodigy(growth_rate=2.0).build([ParameterGroup("all", [weight])])
    unpack(fresh, {}, facts)
    assert fresh.param_groups[0]["growth_rate"] == math.inf


def test_a_course_ends_where_it_should() -> None:
    assert Constant().factor(7, 10) == 1
    assert Linear(end=0.2).factor(5, 10) == pytest.approx(0.6)
    assert Cosine(end=0.2).factor(5, 10) == pytest.approx(0.6)
    assert Cosine().factor(2, 8) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    ends = (
        Linear(end=0.2),
        Cosine(end=0.2),
        Cosine(end=0.2, cycles=3),
        Polynomial(end=0.2),
        WarmupStableDecay(end=0.2),
    )
    assert [rate.factor(10, 10) for rate in ends] == pytest.approx([0.2] * 5)
    assert [rate.factor(12, 10) for rate in ends] == pytest.approx([0.2] * 5)


def test_a_cosine_with_restarts_is_that_of_transformers() -> None:
    """Each cycle falls from 1, and the last one ends at 0."""
    from transformers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup

    theirs = get_cosine_with_hard_restarts_schedule_with_warmup(
        torch.optim.SGD([Parameter(torch.ones(1))], lr=1.0), 0, 24, num_cycles=3
    ).lr_lambdas[0]
    assert [Cosine(cycles=3).factor(step, 24) for step in range(25)] == pytest.approx([theirs(n) for n in range(25)])
    assert [Cosine(cycles=3, end=0.5).factor(step, 24) for step in (0, 8, 16)] == [1, 1, 1]


def test_a_polynomial_is_that_of_transformers() -> None:
    from transformers.optimization import get_polynomial_decay_schedule_with_warmup

    theirs = get_polynomial_decay_schedule_with_warmup(
        torch.optim.SGD([Parameter(torch.ones(1))], lr=1.0), 0, 20, lr_end=0.1, power=2.0
    ).lr_lambdas[0]
    ours = Polynomial(power=2, end=0.1)
    assert [ours.factor(step, 20) for step in range(21)] == pytest.approx([theirs(n) for n in range(21)])
    assert Polynomial(power=1).factor(5, 20) == pytest.approx(Linear().factor(5, 20))


def test_warmup_stable_decay_is_full_until_its_last_part() -> None:
    """100 steps, 10 of climb, the last fifth of the other 90 going down: from step 82 on."""
    for form, halfway in (("root", 1 - math.sqrt(0.5)), ("linear", 0.5), ("cosine", 0.5)):
        rate = WarmupStableDecay.model_validate({"warmup": 10, "decay": 0.2, "form": form})
        factors = [rate.factor(step, 100) for step in range(101)]
        assert factors[10:83] == pytest.approx([1.0] * 73)
        assert factors[91] == pytest.approx(halfway)
        assert factors[100] == pytest.approx(0)
        assert all(later < earlier for earlier, later in pairwise(factors[82:]))


@pytest.mark.parametrize("member", [AdamW8bit, PagedAdamW8bit, Lion, Lion8bit])
def test_without_bitsandbytes_the_user_is_told(
    monkeypatch: pytest.MonkeyPatch, member: type[OptimizerSettings]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RecipeError, match="cannot be imported") as caught:
        member().build([ParameterGroup("all", [Parameter(torch.zeros(3))])])
    assert caught.value.where == "optimizer.kind"


@pytest.mark.parametrize(("member", "library"), [(Prodigy, "prodigyopt"), (ScheduleFreeAdamW, "schedulefree")])
def test_without_its_library_the_user_is_told(
    monkeypatch: pytest.MonkeyPatch, member: type[OptimizerSettings], library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for call in (
        lambda: member().check(torch.device("cpu")),
        lambda: member().build([ParameterGroup("all", [Parameter(torch.zeros(3))])]),
    ):
        with pytest.raises(RecipeError, match=f"{library} cannot be imported") as caught:
            call()
        assert f"pip install {library}" in str(caught.value)


def test_where_bitsandbytes_fails_the_user_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes import functional

    def without_library(*_: object, **__: object) -> None:
        raise RuntimeError("the native library is missing\nand a page of advice")

    monkeypatch.setattr(functional, "optimizer_update_8bit_blockwise", without_library)
    for call in (
        lambda: AdamW8bit().build([ParameterGroup("all", [Parameter(torch.zeros(3))])]),
        lambda: Lion8bit().check(torch.device("cpu")),
    ):
        with pytest.raises(RecipeError, match="native library is missing") as caught:
            call()
        assert "page of advice" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_adamw_is_one_kernel_and_agrees_with_the_processor() -> None:
    weights = [Parameter(torch.linspace(-1, 1, 5000, device=device)) for device in ("cpu", "cuda")]
    for weight in weights:
        optimizer = AdamW(rate=0.1).build([ParameterGroup("all", [weight])])
        assert bool(optimizer.param_groups[0]["fused"]) == weight.is_cuda
        for number in range(3):
            weight.grad = torch.cos(weight.detach() * number)
            optimizer.step()
        fresh = AdamW(rate=0.1).build([ParameterGroup("all", [Parameter(weight.detach().clone())])])
        unpack(fresh, *pack(optimizer))
    torch.testing.assert_close(weights[0].detach(), weights[1].detach().cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_paged_numbers_are_paged_again_after_a_resume_and_go_on_alike() -> None:
    first = Parameter(torch.linspace(-1, 1, 1 << 18, device="cuda").view(512, 512))
    optimizer = PagedAdamW8bit(rate=0.1).build([ParameterGroup("all", [first])])

    def step(weight: Parameter, mover: torch.optim.Optimizer, number: int) -> None:
        weight.grad = torch.cos(weight.detach() * number)
        mover.step()

    for number in range(3):
        step(first, optimizer, number)
    assert optimizer.state[first]["state1"].is_paged
    second = Parameter(first.detach().clone())
    resumed = PagedAdamW8bit(rate=0.1).build([ParameterGroup("all", [second])])
    unpack(resumed, *pack(optimizer))
    assert resumed.state[second]["state1"].is_paged
    for number in range(3, 6):
        step(first, optimizer, number)
        step(second, resumed, number)
    assert torch.equal(first, second)
