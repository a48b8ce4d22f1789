"""Prior preservation without class pictures: rows whose target is the base model's own answer."""

from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainer.batch import Batch, Conditioning, Geometry
from trainer.core.seeds import Seeds
from trainer.objective.distances import L1
from trainer.objective.objective import Loss, Objective
from trainer.objective.predictions import Epsilon, Prediction, Velocity
from trainer.objective.schedules import DiscreteSchedule
from trainer.objective.weightings import MinSnr

SCHEDULE = DiscreteSchedule.from_scheduler_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
SEEDS = Seeds(11)


def a_batch(from_base: Sequence[int] = (), *, live: bool = False) -> Batch:
    def numbers(*shape: int) -> Tensor:
        return torch.randn(4, *shape, generator=torch.Generator().manual_seed(len(shape)))

    places = torch.arange(8).view(4, 2)
    words = Conditioning(tokens=numbers(3, 5), pooled=numbers(6))
    return Batch(
        number=4,
        slots=(2, 3, 4, 5),
        latents=numbers(4, 6, 6),
        words=("a", "b", "c", "d") if live else words,
        geometry=Geometry(original=places, crop=places + 1, target=places + 2),
        weight=torch.tensor([1.0, 0.5, 1.0, 0.0]),
        total=3,
        keys=("k", "l", "m", "n"),
        mask=numbers(1, 6, 6).abs(),
        from_base=tuple(from_base),
    )


class Network:
    """A denoiser of one weight that remembers with whom it was asked."""

    def __init__(self, scale: float) -> None:
        self.scale = torch.tensor(scale, requires_grad=True)
        self.asked: list[tuple[Tensor, Tensor, Batch]] = []

    def __call__(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        self.asked.append((noisy.detach(), t, batch))
        assert isinstance(batch.words, Conditioning)
        assert len(noisy) == len(t) == len(batch.words.tokens) == len(batch.geometry.crop) == len(batch)
        return self.scale * noisy * (1 + t[:, None, None, None]) + batch.words.tokens[:, :1, :1, None]


def loss_of(batch: Batch, base: Network | None, objective: Objective | None = None, scale: float = 0.5) -> Loss:
    objective = objective or Objective(weighting=MinSnr())
    return objective(Network(scale), batch, SCHEDULE, Velocity(), SEEDS, base=base)


def test_without_such_rows_the_base_is_not_asked_and_no_bit_moves() -> None:
    base = Network(0.3)
    asked, plain = loss_of(a_batch(), base), loss_of(a_batch(), None)
    assert base.asked == []
    assert torch.equal(asked.value, plain.value)
    assert torch.equal(asked.per_example, plain.per_example)


@pytest.mark.parametrize("rows", [(1,), (0, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("native", [Epsilon(), Velocity()], ids=lambda one: one.kind)
def test_those_rows_are_measured_against_the_base_and_the_others_are_as_before(
    rows: tuple[int, ...], native: Prediction
) -> None:
    base, objective = Network(0.3), Objective(distance=L1())
    batch = replace(a_batch(rows), mask=None)
    loss = objective(Network(0.5), batch, SCHEDULE, native, SEEDS, base=base)
    plain = objective(Network(0.5), replace(batch, from_base=()), SCHEDULE, native, SEEDS)
    for row in range(4):
        if row in rows:
            noisy, t, _ = base.asked[0]
            place = rows.index(row)
            expected = (0.2 * noisy[place] * (1 + t[place])).abs().mean()  # both add the same words
            assert_close(loss.per_example[row], expected)
        else:
            assert torch.equal(loss.per_example[row], plain.per_example[row])


def test_the_base_is_asked_once_and_of_those_rows_alone() -> None:
    base, batch = Network(0.3), a_batch((1, 3))
    loss_of(batch, base)
    ((noisy, _, asked),) = base.asked
    assert asked.keys == ("l", "n")
    assert asked.slots == (3, 5)
    assert asked.from_base == (0, 1)
    assert torch.equal(asked.latents, batch.latents[[1, 3]])
    assert torch.equal(asked.geometry.target, batch.geometry.target[[1, 3]])
    assert asked.mask is not None
    assert batch.mask is not None
    assert torch.equal(asked.mask, batch.mask[[1, 3]])
    whole = Network(0.5)
    Objective(weighting=MinSnr())(whole, batch, SCHEDULE, Velocity(), SEEDS, base=Network(0.3))
    assert torch.equal(whole.asked[0][0][[1, 3]], noisy)  # the same noise, at the same moment


def test_an_untrained_adapter_has_no_loss_there() -> None:
    loss = loss_of(a_batch((0, 1, 2, 3)), Network(0.5), scale=0.5)
    assert loss.value.item() == 0


def test_no_gradient_reaches_the_base_and_the_weight_of_the_source_counts() -> None:
    base, network = Network(0.3), Network(0.5)
    batch = replace(a_batch((1,)), mask=None)
    loss = Objective()(network, batch, SCHEDULE, Velocity(), SEEDS, base=base)
    loss.value.backward()
    assert base.scale.grad is None
    assert network.scale.grad is not None
    assert_close(loss.value, (batch.weight * loss.per_example).sum() / 3)


def test_a_batch_that_asks_for_a_base_needs_one() -> None:
    with pytest.raises(ValueError, match="no base model"):
        loss_of(a_batch((1,)), None)


def test_part_of_a_batch_keeps_every_field_and_its_chance() -> None:
    """A field that is added to `Batch` must be taken too."""
    for live in (False, True):
        batch = a_batch((1, 2), live=live)
        part, again = batch.take((2, 0)), batch.take((0, 1, 2, 3))
        assert (part.keys, part.slots, part.from_base) == (("m", "k"), (4, 2), (0,))
        for field in fields(Batch):
            one, other = getattr(again, field.name), getattr(batch, field.name)
            if isinstance(one, Tensor):
                assert torch.equal(one, other)
                assert len(getattr(part, field.name)) == 2
            elif isinstance(one, (str, int, tuple)):
                assert one == other
    drawn = Objective().draw(batch, SCHEDULE, Velocity(), SEEDS)
    assert torch.equal(Objective().draw(part, SCHEDULE, Velocity(), SEEDS).noise, drawn.noise[[2, 0]])
