"""Masks: what lies outside counts nothing, and how large the masked part is does not matter."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from trainer.batch import Batch, Conditioning, Geometry
from trainer.core.seeds import Seeds
from trainer.objective.distances import AnyDistance, Distance, Mse
from trainer.objective.moments import Moments
from trainer.objective.objective import Loss, Objective
from trainer.objective.predictions import Velocity
from trainer.objective.schedules import DiscreteSchedule
from trainer.objective.weightings import MinSnr

DISTANCES = [member() for member in get_args(get_args(AnyDistance)[0])]
SCHEDULE = DiscreteSchedule.from_scheduler_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)


def kind(distance: Distance) -> str:
    return type(distance).__name__


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft_mask(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def a_batch(mask: Tensor | None, dtype: torch.dtype = torch.float32) -> Batch:
    places = torch.zeros(3, 2, dtype=torch.int64)
    return Batch(
        number=2,
        slots=(0, 1, 2),
        latents=numbers(3, 4, 6, 10).to(dtype),
        words=Conditioning(tokens=torch.zeros(3, 3, 5)),
        geometry=Geometry(original=places, crop=places, target=places),
        weight=torch.tensor([1.0, 0.5, 1.0]),
        total=3,
        keys=("a", "b", "c"),
        mask=mask,
    )


def loss_and_gradient(batch: Batch, objective: Objective) -> tuple[Loss, Tensor]:
    """The loss, and its gradient by every number that the network answers."""
    answers: list[Tensor] = []

    def predict(noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        answers.append((0.3 * noisy).requires_grad_())
        return answers[0]

    loss = objective(predict, batch, SCHEDULE, Velocity(), Seeds(3))
    (gradient,) = torch.autograd.grad(loss.value, answers[0])
    return loss, gradient


def when(count: int) -> Moments:
    t = torch.linspace(0.1, 0.9, count)
    return Moments(t=t, a=(1 - t).sqrt(), s=t.sqrt())


@pytest.mark.parametrize("distance", DISTANCES, ids=kind)
def test_a_masked_distance_is_the_mean_over_the_masked_area(distance: Distance) -> None:
    predicted, target, mask = numbers(2, 4, 5, 7), numbers(2, 4, 5, 7, seed=5), soft_mask(2, 1, 5, 7)
    errors = distance.errors(predicted, target, when(2))
    expected = (mask * errors).sum((1, 2, 3)) / (4 * mask.sum((1, 2, 3)))
    assert_close(distance.measure(predicted, target, when(2), mask), expected)


@pytest.mark.parametrize("distance", DISTANCES, ids=kind)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20), (7, 7), (1, 3)])  # 1/49 is no exact number
def test_a_mask_of_ones_is_no_mask_bit_for_bit(distance: Distance, height: int, width: int) -> None:
    predicted, target = numbers(3, 4, height, width), numbers(3, 4, height, width, seed=5)
    plain = distance.measure(predicted, target, when(3))
    assert torch.equal(distance.measure(predicted, target, when(3), torch.ones(3, 1, height, width)), plain)
    mixed = soft_mask(3, 1, height, width)
    mixed[1] = 1
    measured = distance.measure(predicted, target, when(3), mixed)
    assert torch.equal(measured[1], plain[1])
    assert not torch.equal(measured[0], plain[0])


@pytest.mark.parametrize("distance", DISTANCES, ids=kind)
@given(top=st.integers(0, 5), left=st.integers(0, 8), height=st.integers(1, 6), width=st.integers(1, 9))
def test_a_box_costs_what_its_part_would_cost_alone(
    distance: Distance, top: int, left: int, height: int, width: int
) -> None:
    predicted, target = numbers(2, 4, 6, 9).double(), numbers(2, 4, 6, 9, seed=5).double()
    box = (..., slice(top, top + height), slice(left, left + width))
    mask = torch.zeros(2, 1, 6, 9)
    mask[box] = 1
    whole = distance.measure(predicted, target, when(2), mask)
    assert_close(whole, distance.measure(predicted[box], target[box], when(2)))


@pytest.mark.parametrize("distance", DISTANCES, ids=kind)
def test_only_the_proportions_of_a_mask_matter(distance: Distance) -> None:
    """Half as white everywhere, or all of it twice as large: the same loss."""
    predicted, target, mask = numbers(2, 4, 5, 7), numbers(2, 4, 5, 7, seed=5), soft_mask(2, 1, 5, 7)
    loss = distance.measure(predicted, target, when(2), mask)
    assert_close(distance.measure(predicted, target, when(2), mask / 2), loss)
    one, other, its_mask = (part.repeat_interleave(2, 2).repeat_interleave(2, 3) for part in (predicted, target, mask))
    assert_close(distance.measure(one, other, when(2), its_mask), loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_nothing_is_learnt_outside_of_the_mask(dtype: torch.dtype) -> None:
    mask = torch.zeros(3, 1, 6, 10)
    mask[:, :, 1:4, 2:5] = soft_mask(3, 1, 3, 3).clamp(min=0.1)
    loss, gradient = loss_and_gradient(a_batch(mask.to(dtype), dtype), Objective(weighting=MinSnr()))
    inside = mask.expand_as(gradient) > 0
    assert loss.value.dtype == loss.per_example.dtype == torch.float32
    assert torch.isfinite(loss.value)
    assert (gradient[~inside] == 0).all()
    assert (gradient[inside] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("unmasked", [0.0, 0.2])
def test_a_mask_out_of_a_cache_of_half_precision_is_averaged_in_single(dtype: torch.dtype, unmasked: float) -> None:
    mask = soft_mask(3, 1, 6, 10).to(dtype)
    half = loss_and_gradient(a_batch(mask), Objective(unmasked=unmasked))
    single = loss_and_gradient(a_batch(mask.float()), Objective(unmasked=unmasked))
    assert torch.equal(half[0].value, single[0].value)
    assert torch.equal(half[1], single[1])


def test_a_masked_batch_costs_what_its_examples_cost() -> None:
    """Row by row; a row of ones as without a mask, whatever masks stand beside it."""
    mask = soft_mask(3, 1, 6, 10)
    mask[2] = 1
    masked, plain = loss_and_gradient(a_batch(mask), Objective()), loss_and_gradient(a_batch(None), Objective())
    for unmasked in (0.0, 0.1, 0.35, 0.7, 0.9):
        ones = loss_and_gradient(a_batch(torch.ones(3, 1, 6, 10)), Objective(unmasked=unmasked))
        assert torch.equal(ones[0].value, plain[0].value)
        assert torch.equal(ones[1], plain[1])
    assert torch.equal(masked[0].per_example[2], plain[0].per_example[2])
    assert torch.equal(masked[1][2], plain[1][2])
    assert not torch.equal(masked[1][0], plain[1][0])
    alone = replace(a_batch(mask), mask=mask[:1].expand(3, 1, 6, 10))
    assert torch.equal(loss_and_gradient(alone, Objective())[0].per_example[0], masked[0].per_example[0])


@pytest.mark.parametrize("unmasked", [0.1, 0.5, 1.0])
def test_the_rest_can_count_a_little(unmasked: float) -> None:
    mask = soft_mask(3, 1, 6, 10)
    loss, gradient = loss_and_gradient(a_batch(mask), Objective(unmasked=unmasked))
    said, by_hand = loss_and_gradient(a_batch(unmasked + (1 - unmasked) * mask), Objective())
    assert_close(loss.value, said.value)
    assert_close(gradient, by_hand)
    if unmasked == 1:
        assert torch.equal(loss.value, loss_and_gradient(a_batch(None), Objective())[0].value)
    assert torch.isfinite(loss_and_gradient(a_batch(torch.zeros_like(mask)), Objective(unmasked=unmasked))[0].value)


@pytest.mark.parametrize("unmasked", [-0.1, 1.1])
def test_more_than_all_or_less_than_nothing_is_refused(unmasked: float) -> None:
    with pytest.raises(ValidationError, match="unmasked"):
        Objective(unmasked=unmasked)


def test_a_mask_without_any_place_does_not_pass_for_a_number() -> None:
    """Such a mask breaks the contract, and must stop the run rather than count as no loss."""
    none = torch.zeros(1, 1, 2, 2)
    assert Mse().measure(torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), when(1), none).isnan().all()


def test_masks_move_with_their_batch() -> None:
    batch = a_batch(soft_mask(3, 1, 6, 10)).to(torch.device("meta"))
    assert batch.mask is not None
    assert batch.mask.device.type == batch.latents.device.type == "meta"
    assert a_batch(None).to(torch.device("meta")).mask is None
