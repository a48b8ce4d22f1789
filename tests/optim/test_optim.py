"""Numbers of the optimisers and rates, and what happens where bitsandbytes cannot work."""

import math
import sys

import pytest
import torch
from torch.nn import Parameter

from trainer.core.errors import RecipeError
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizers import AdamW, AdamW8bit
from trainer.optim.rates import Constant, Cosine, Linear


def test_adamw_is_the_algorithm_of_the_paper() -> None:
    """Loshchilov and Hutter 2017, Algorithm 2, two steps by hand."""
    weight = Parameter(torch.tensor([2.0], dtype=torch.float64))
    settings = AdamW(rate=0.1, weight_decay=0.5, betas=(0.8, 0.9), epsilon=1e-3)
    optimizer = settings.build([ParameterGroup("all", [weight], rate=0.2)])
    theta, m, v = 2.0, 0.0, 0.0
    for step, gradient in enumerate([3.0, -1.0], start=1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        theta -= 0.2 * 0.5 * theta
        theta -= 0.2 * (m / (1 - 0.8**step)) / (math.sqrt(v / (1 - 0.9**step)) + 1e-3)
    assert weight.item() == pytest.approx(theta)


def test_a_course_ends_where_it_should() -> None:
    assert Constant().factor(7, 10) == 1
    assert Linear(end=0.2).factor(5, 10) == pytest.approx(0.6)
    assert Cosine(end=0.2).factor(5, 10) == pytest.approx(0.6)
    assert Cosine().factor(2, 8) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert [rate.factor(10, 10) for rate in (Linear(end=0.2), Cosine(end=0.2))] == pytest.approx([0.2, 0.2])


def test_without_bitsandbytes_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RecipeError, match="cannot be imported") as caught:
        AdamW8bit().build([ParameterGroup("all", [Parameter(torch.zeros(3))])])
    assert caught.value.where == "optimizer.kind"


def test_where_bitsandbytes_fails_the_user_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes import functional

    def without_library(*_: object, **__: object) -> None:
        raise RuntimeError("the native library is missing\nand a page of advice")

    monkeypatch.setattr(functional, "optimizer_update_8bit_blockwise", without_library)
    with pytest.raises(RecipeError, match="native library is missing") as caught:
        AdamW8bit().build([ParameterGroup("all", [Parameter(torch.zeros(3))])])
    assert "page of advice" not in str(caught.value)
