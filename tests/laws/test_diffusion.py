"""The formulas of `objective` hold for random numbers."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainer.core.seeds import Seeds
from trainer.objective.distances import L1, AnyDistance, Distance, Huber, Mse
from trainer.objective.noises import Gaussian, Offset, Pyramid
from trainer.objective.predictions import AnyPrediction, Epsilon, Prediction, Sample, Velocity
from trainer.objective.schedules import DiscreteSchedule
from trainer.objective.timesteps import LogitNormal, Uniform
from trainer.objective.weightings import Debiased, Flat, MinSnr

PREDICTIONS = [member() for member in get_args(get_args(AnyPrediction)[0])]
DISTANCES = [member() for member in get_args(get_args(AnyDistance)[0])]
# `Any`: diffusers' constructors declare each key's type
SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def kind(member: Prediction | Distance) -> str:
    return type(member).__name__


def column(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None, None, None]


def three_latents() -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return numbers[0], numbers[1], numbers[2]


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=kind)
def test_gain_relates_error_of_prediction_to_error_of_clean_latent(prediction: Prediction) -> None:
    """Two clean latents that explain the same noisy one differ in target by exactly the gain."""
    clean, noise, other = three_latents()
    a, s = column([0.8, 0.28]), column([0.6, 0.96])  # a^2 + s^2 = 1
    rival = prediction.target(other, noise + a / s * (clean - other), a, s)
    error = (prediction.target(clean, noise, a, s) - rival).square().mean((1, 2, 3))
    assert_close(error / (clean - other).square().mean((1, 2, 3)), prediction.gain(a, s).flatten())


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=kind)
def test_a_perfect_prediction_implies_the_clean_latent(prediction: Prediction) -> None:
    clean, noise, _ = three_latents()
    a, s = column([0.8, 0.28]), column([0.6, 0.96])
    target = prediction.target(clean, noise, a, s)
    assert_close(prediction.clean(target, a * clean + s * noise, a, s), clean)


def test_targets_are_those_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**SD)
    schedule = DiscreteSchedule.from_scheduler_config(dict(scheduler.config))
    clean, noise, _ = (part.float() for part in three_latents())
    steps: Any = torch.tensor([3, 900])  # diffusers asks for IntTensor, which no factory is typed to return
    a, s = (share[:, None, None, None] for share in schedule.at(schedule.moment(steps)))
    assert_close(a * clean + s * noise, scheduler.add_noise(clean, noise, steps), atol=1e-5, rtol=1e-5)
    velocity = Velocity().target(clean, noise, a, s)
    assert_close(velocity, scheduler.get_velocity(clean, noise, steps), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_schedules_are_those_of_diffusers(form: str, rescale: bool) -> None:
    from diffusers import DDPMScheduler

    config: dict[str, Any] = {**SD, "beta_schedule": form, "rescale_betas_zero_snr": rescale}
    scheduler = DDPMScheduler(**config)
    schedule = DiscreteSchedule.from_scheduler_config(config)
    assert_close(schedule.signal, scheduler.alphas_cumprod.sqrt(), atol=2e-5, rtol=0)
    assert_close(schedule.signal.square() + schedule.noise.square(), torch.ones(1000), atol=1e-6, rtol=0)


def test_the_rescaled_schedule_ends_in_pure_noise_before_any_snr_is_taken() -> None:
    plain = DiscreteSchedule.from_scheduler_config(SD)
    rescaled = DiscreteSchedule.from_scheduler_config({**SD, "rescale_betas_zero_snr": True})
    last, middle = torch.tensor([999]), torch.tensor([500])
    assert plain.snr(plain.moment(last)).item() == pytest.approx(0.00468, abs=1e-4)
    assert rescaled.snr(rescaled.moment(last)).item() == 0
    assert rescaled.snr(rescaled.moment(middle)).item() == pytest.approx(0.318, abs=2e-3)
    assert rescaled.signal[0].item() == pytest.approx(plain.signal[0].item(), abs=1e-6)


def test_every_step_is_told_from_its_neighbours_in_single_precision() -> None:
    schedule = DiscreteSchedule.from_scheduler_config(SD)
    steps = torch.arange(1000)
    assert torch.equal(schedule.index(schedule.moment(steps)), steps)
    edges = torch.tensor([0.0, 1 - 2**-53, 0.005, 0.004999999999], dtype=torch.float64)
    assert torch.equal(schedule.index(schedule.snap(edges)), schedule.index(edges))
    assert schedule.index(edges).tolist() == [0, 999, 5, 4]


def snr_and_gain(prediction: Prediction) -> tuple[Tensor, Tensor]:
    schedule = DiscreteSchedule.from_scheduler_config(SD)
    t = schedule.moment(torch.arange(0, 1000, 37))
    a, s = schedule.at(t)
    return schedule.snr(t), prediction.gain(a, s)


@pytest.mark.parametrize(
    ("prediction", "divisor"),
    [(Epsilon(), (1, 0)), (Velocity(), (1, 1)), (Sample(), (0, 1))],
    ids=["epsilon", "velocity", "sample"],
)
def test_min_snr_weights_are_those_of_the_paper(prediction: Prediction, divisor: tuple[int, int]) -> None:
    """They divide by SNR, SNR + 1 and 1; a known bug adds 1 to velocity's weight instead."""
    snr, gain = snr_and_gain(prediction)
    paper = snr.clamp(max=5) / (divisor[0] * snr + divisor[1])
    assert_close(MinSnr(gamma=5).weigh(snr, gain), paper, rtol=1e-4, atol=0)


def test_debiased_weights_are_those_of_the_paper() -> None:
    snr, gain = snr_and_gain(Epsilon())
    assert_close(Debiased().weigh(snr, gain), snr.rsqrt(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighting", [MinSnr(), Debiased()], ids=lambda w: w.kind)
def test_a_weighted_loss_means_the_same_for_every_prediction(weighting: MinSnr | Debiased) -> None:
    """Weight times gain is the weight in clean latents: one number, whatever is predicted."""
    in_clean = [weighting.weigh(*snr_and_gain(p)) * snr_and_gain(p)[1] for p in (Epsilon(), Velocity(), Sample())]
    assert_close(in_clean[0], in_clean[2], rtol=1e-4, atol=0)
    assert_close(in_clean[1], in_clean[2], rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighting", [Flat(), MinSnr(), Debiased()], ids=lambda w: w.kind)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=kind)
def test_weights_stay_finite_at_pure_noise(weighting: Flat, prediction: Prediction) -> None:
    nothing, all_noise = torch.zeros(1), torch.ones(1)
    weight = weighting.weigh(nothing, prediction.gain(nothing, all_noise))
    assert torch.isfinite(weight).all()


@pytest.mark.parametrize("distance", DISTANCES, ids=kind)
def test_a_distance_is_a_mean_over_an_example(distance: Distance) -> None:
    clean, other, _ = three_latents()
    off = distance.measure(clean, other)
    assert off.shape == (2,)
    assert (off > 0).all()
    assert_close(distance.measure(other, clean), off)
    assert_close(distance.measure(clean, clean), torch.zeros(2).double())
    assert_close(distance.measure(clean.tile(1, 1, 2, 3), other.tile(1, 1, 2, 3)), off)


def test_huber_is_squared_for_small_and_absolute_for_large_errors() -> None:
    zero = torch.zeros(1, 1, 1, 1)
    huber = Huber(delta=0.1)
    small, large = zero + 1e-4, zero + 1e3
    assert_close(huber.measure(small, zero), Mse().measure(small, zero), rtol=1e-4, atol=0)
    assert_close(huber.measure(large, zero), 2 * 0.1 * L1().measure(large, zero), rtol=1e-3, atol=0)


def test_uniform_times_fill_their_range_evenly() -> None:
    t = Uniform(low=0.2, high=0.6).draw(Seeds(1), 0, range(4000))
    assert t.min() >= 0.2
    assert t.max() < 0.6
    assert_close(torch.histc(t, 4, 0.2, 0.6) / 4000, torch.full((4,), 0.25).double(), atol=0.03, rtol=0)


def test_logit_normal_times_have_a_normal_logit() -> None:
    logit = LogitNormal(mean=0.5, deviation=0.7).draw(Seeds(1), 0, range(4000)).logit()
    assert logit.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logit.std().item() == pytest.approx(0.7, abs=0.05)


def test_times_never_reach_the_end_of_their_range() -> None:
    assert LogitNormal(mean=60).draw(Seeds(1), 0, range(4)).max() < 1
    assert LogitNormal(mean=60, low=0.1, high=0.3).draw(Seeds(1), 0, range(4)).max() < 0.3


def test_offset_noise_varies_together_over_a_channel() -> None:
    noise = Offset(strength=0.5).draw((4, 16, 16), Seeds(3), 7, range(300))
    assert noise.var().item() == pytest.approx(1 + 0.5**2, abs=0.03)
    # the mean over 256 places keeps the constant part whole and 1/256 of the rest
    assert noise.mean((2, 3)).var().item() == pytest.approx(0.5**2 + 1 / 256, abs=0.03)
    assert torch.equal(
        Offset(strength=0).draw((4, 8, 8), Seeds(3), 7, [0]), Gaussian().draw((4, 8, 8), Seeds(3), 7, [0])
    )


@pytest.mark.parametrize("size", [(16, 16), (9, 24), (1, 5)])
def test_pyramid_noise_has_unit_power_and_more_of_it_in_the_coarse(size: tuple[int, int]) -> None:
    noise = Pyramid(discount=0.5).draw((4, *size), Seeds(3), 7, range(200))
    assert_close(noise.square().mean((1, 2, 3)), torch.ones(200))
    plain = Gaussian().draw((4, *size), Seeds(3), 7, range(200))
    assert noise.mean((2, 3)).var() > 1.2 * plain.mean((2, 3)).var()
