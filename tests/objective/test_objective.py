"""The loss of a batch: what counts, how it is shared, in which precision, and that chance is pure."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainer.batch import Batch, Conditioning, Geometry
from trainer.core.errors import WeightsError
from trainer.core.seeds import Seeds
from trainer.objective.distances import L1
from trainer.objective.noises import Offset
from trainer.objective.objective import Loss, Objective
from trainer.objective.predictions import Epsilon, Sample, Velocity, prediction_of
from trainer.objective.schedules import DiscreteSchedule
from trainer.objective.weightings import MinSnr

CONFIG: dict[str, object] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = DiscreteSchedule.from_scheduler_config(CONFIG)
SEEDS = Seeds(11)


def a_batch(slots: Sequence[int], number: int = 4, total: int | None = None) -> Batch:
    latents = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(slot)) for slot in slots])
    places = torch.zeros(len(slots), 2, dtype=torch.int64)
    return Batch(
        number=number,
        slots=tuple(slots),
        latents=latents,
        words=Conditioning(tokens=torch.zeros(len(slots), 3, 5)),
        geometry=Geometry(original=places, crop=places, target=places),
        weight=torch.ones(len(slots)),
        total=len(slots) if total is None else total,
        keys=tuple(str(slot) for slot in slots),
    )


def a_network(scale: Tensor):
    """A denoiser of one weight, whose answer depends on t, so that a wrong t would show."""

    def predict(noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        assert noisy.shape == batch.latents.shape
        return scale * noisy * (1 + t[:, None, None, None])

    return predict


def loss_of(batch: Batch, objective: Objective | None = None, world: int = 1) -> Loss:
    objective = objective or Objective()
    return objective(a_network(torch.tensor(0.5)), batch, SCHEDULE, Epsilon(), SEEDS, world=world)


def test_the_plain_loss_is_the_mean_squared_error_of_the_noise() -> None:
    """Written out by hand, from the tables that diffusers would use."""
    batch = a_batch([0, 1, 2])
    loss = loss_of(batch)
    steps = [int(SEEDS.uniform("timestep", 4, slot) * 1000) for slot in batch.slots]
    noise = SEEDS.normal("noise", 4, batch.slots, (4, 8, 8))
    for row, step in enumerate(steps):
        a, s = SCHEDULE.signal[step], SCHEDULE.noise[step]
        answer = 0.5 * (a * batch.latents[row] + s * noise[row]) * (1 + (step + 0.5) / 1000)
        assert_close(loss.per_example[row], (answer - noise[row]).square().mean())
    assert_close(loss.value, loss.per_example.mean())
    assert SCHEDULE.index(loss.t).tolist() == steps


def test_a_perfect_network_has_no_loss() -> None:
    batch = a_batch([0, 1])

    def oracle(noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        a, s = (share[:, None, None, None] for share in SCHEDULE.at(t))
        return (noisy - a * batch.latents) / s

    loss = Objective(weighting=MinSnr())(oracle, batch, SCHEDULE, Epsilon(), SEEDS)
    assert loss.value.item() < 1e-8


def test_nothing_said_of_the_prediction_means_as_the_weights_were_trained() -> None:
    batch = a_batch([0, 1])
    network = a_network(torch.tensor(0.5))
    native = Objective()(network, batch, SCHEDULE, Velocity(), SEEDS)
    said = Objective(prediction=Velocity())(network, batch, SCHEDULE, Epsilon(), SEEDS)
    other = Objective(prediction=Sample())(network, batch, SCHEDULE, Velocity(), SEEDS)
    assert torch.equal(native.value, said.value)
    assert not torch.equal(native.value, other.value)


@pytest.mark.parametrize(
    "objective", [Objective(), Objective(noise=Offset(), weighting=MinSnr(), distance=L1())], ids=["plain", "rich"]
)
def test_processes_with_uneven_shares_and_filling_see_what_one_would_see(objective: Objective) -> None:
    """The mean of the gradients over three processes, one of them with filling only, is the gradient of one."""
    scale = torch.tensor(0.5, requires_grad=True)

    def gradient(batch: Batch, world: int) -> Tensor:
        loss = objective(a_network(scale), batch, SCHEDULE, Velocity(), SEEDS, world=world)
        (found,) = torch.autograd.grad(loss.value, scale)
        return found

    whole = gradient(a_batch(range(5)), 1)
    full = a_batch([0, 1, 2], total=5)
    ragged = replace(a_batch([3, 4, 5], total=5), weight=torch.tensor([1.0, 1.0, 0.0]))
    filling = replace(a_batch([6, 7, 8], total=5), weight=torch.zeros(3))
    shares = torch.stack([gradient(batch, 3) for batch in (full, ragged, filling)])
    assert_close(shares.mean(), whole)


def test_a_weight_counts_in_the_value_and_not_in_the_reported_examples() -> None:
    batch = a_batch([0, 1])
    half = replace(batch, weight=torch.tensor([1.0, 0.5]))
    plain, weighted = loss_of(batch), loss_of(half)
    assert torch.equal(plain.per_example, weighted.per_example)
    assert_close(weighted.value, (plain.per_example * half.weight).sum() / 2)


def test_chance_is_pure() -> None:
    """The same batch has the same loss, whatever was asked before and whatever torch's own generator holds."""
    first = loss_of(a_batch([0, 1]))
    torch.manual_seed(99)
    loss_of(a_batch([0, 1], number=5))
    again = loss_of(a_batch([0, 1]))
    swapped = loss_of(a_batch([1, 0]))
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.per_example.flip(0), swapped.per_example)
    assert not torch.equal(first.value, loss_of(a_batch([0, 1], number=5)).value)


def test_the_loss_is_single_precision_whatever_comes_in() -> None:
    batch = a_batch([0, 1])
    weight = torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True)
    half = replace(batch, latents=batch.latents.bfloat16())
    seen: list[torch.dtype] = []

    def predict(noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        seen.append(noisy.dtype)
        return weight * noisy.bfloat16()

    loss = Objective()(predict, half, SCHEDULE, Epsilon(), SEEDS)
    assert seen == [torch.float32]
    assert loss.value.dtype == loss.per_example.dtype == loss.t.dtype == torch.float32
    assert loss.value.requires_grad
    assert not loss.per_example.requires_grad


@pytest.mark.parametrize("prediction", [Epsilon(), Velocity()], ids=lambda one: one.kind)
def test_a_perturbed_input_is_noisier_and_has_the_same_target(prediction: Epsilon | Velocity) -> None:
    """Ning et al. 2023: x_t from eps + gamma xi, while eps is to be found."""
    batch, seen = a_batch([0, 1]), list[Tensor]()

    def predict(noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        seen.append(noisy)
        return 0 * noisy

    plain = Objective()(predict, batch, SCHEDULE, prediction, SEEDS)
    perturbed = Objective(perturbation=0.1)(predict, batch, SCHEDULE, prediction, SEEDS)
    assert torch.equal(plain.per_example, perturbed.per_example)  # a network that says nothing is as wrong
    more = (seen[1] - seen[0]) / SCHEDULE.at(plain.t)[1][:, None, None, None]
    xi = SEEDS.normal("perturbation", 4, batch.slots, (4, 8, 8))
    assert_close(more, 0.1 * xi, atol=1e-5, rtol=1e-4)
    noise = SEEDS.normal("noise", 4, batch.slots, (4, 8, 8))
    assert abs((noise * xi).mean().item()) < 0.15  # another draw


def test_what_is_drawn_beforehand_gives_the_same_loss() -> None:
    """Whoever draws ahead of the step must not be able to move a bit."""
    objective, batch = Objective(weighting=MinSnr(), perturbation=0.1), a_batch([0, 1])
    drawn = objective.draw(batch, SCHEDULE, Velocity(), SEEDS)
    assert drawn.weight.device.type == drawn.noise.device.type == "cpu"
    network = a_network(torch.tensor(0.5))
    at_once = objective(network, batch, SCHEDULE, Velocity(), SEEDS)
    ahead = objective.loss(network, batch, drawn.to(torch.device("cpu")), Velocity())
    assert torch.equal(at_once.value, ahead.value)
    moved = drawn.to(torch.device("meta"))
    assert {moved.noise.device.type, moved.mixed_in.device.type, moved.moments.s.device.type} == {"meta"}
    plain = Objective().draw(batch, SCHEDULE, Velocity(), SEEDS).to(torch.device("meta"))
    assert plain.mixed_in is plain.noise  # crosses once


PARTS = [
    *({"weighting": {"kind": word}} for word in ("flat", "noise_error", "min_snr", "soft_min_snr", "debiased", "p2")),
    *({"distance": {"kind": word}} for word in ("mse", "l1")),
    *(
        {"distance": {"kind": word, "schedule": schedule}}
        for word in ("huber", "smooth_l1")
        for schedule in ("constant", "exponential", "snr")
    ),
    {"noise": {"kind": "offset", "random_strength": True}},
    {"noise": {"kind": "pyramid"}},
    {"perturbation": 0.1},
]


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("prediction", [Velocity(), Sample(), Epsilon()], ids=lambda one: one.kind)
def test_the_last_step_of_pure_noise_has_a_finite_loss_and_gradient(part: dict[str, Any], prediction: Any) -> None:
    schedule = DiscreteSchedule.from_scheduler_config({**CONFIG, "rescale_betas_zero_snr": True})
    scale = torch.tensor(0.5, requires_grad=True)
    objective = Objective.model_validate({"timesteps": {"kind": "uniform", "low": 0.9995}, **part})
    loss = objective(a_network(scale), a_batch([0, 1]), schedule, prediction, SEEDS)
    assert schedule.index(loss.t).tolist() == [999, 999]
    assert schedule.snr(loss.t).tolist() == [0, 0]
    loss.value.backward()
    assert torch.isfinite(loss.per_example).all()
    assert scale.grad is not None
    assert torch.isfinite(scale.grad)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta_schedule": "magic"}, "magic"),
        ({"beta_start": "x"}, "beta_start"),
        ({"beta_end": float("nan")}, "beta_end"),
        ({"beta_end": 2.0}, "between 0 and 1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
        ({"trained_betas": ["a"]}, "trained_betas"),
        ({"trained_betas": []}, "between 0 and 1"),
    ],
)
def test_a_broken_scheduler_config_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        DiscreteSchedule.from_scheduler_config({**CONFIG, **change})


def test_trained_betas_are_taken_as_they_are() -> None:
    schedule = DiscreteSchedule.from_scheduler_config({**CONFIG, "trained_betas": [0.1, 0.2, 0.5]})
    assert schedule.steps == 3
    assert_close(schedule.signal.square(), torch.tensor([0.9, 0.72, 0.36]))


def test_the_word_of_the_config_decides_what_is_predicted() -> None:
    assert prediction_of({}) == Epsilon()
    assert prediction_of({"prediction_type": "v_prediction"}) == Velocity()
    with pytest.raises(WeightsError, match="flow"):
        prediction_of({"prediction_type": "flow"})


def test_the_bundled_base_is_read() -> None:
    folder = Path(__file__).parents[2] / "trainer" / "families" / "bundled_base" / "scheduler"
    config: dict[str, Any] = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    assert DiscreteSchedule.from_scheduler_config(config).steps == 1000
    assert prediction_of(config) == Velocity()
