"""The formulas of `objective` hold for random numbers."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainer.core.seeds import Seeds
from trainer.objective.noises import Gaussian, Offset, Pyramid
from trainer.objective.predictions import AnyPrediction, Prediction, Velocity
from trainer.objective.schedules import DiscreteSchedule

PREDICTIONS = [member() for member in get_args(get_args(AnyPrediction)[0])]
# `Any`: diffusers' constructors declare each key's type
SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def kind(member: Prediction) -> str:
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


def test_offset_noise_varies_together_over_a_channel() -> None:
    noise = Offset(strength=0.5).draw((4, 16, 16), Seeds(3), 7, range(300))
    assert noise.var().item() == pytest.approx(1 + 0.5**2, abs=0.03)
    # the mean over 256 places keeps the constant part whole and 1/256 of the rest
    assert noise.mean((2, 3)).var().item() == pytest.approx(0.5**2 + 1 / 256, abs=0.03)
    drawn = Offset(strength=0.6, random_strength=True).draw((4, 16, 16), Seeds(3), 7, range(600))
    assert drawn.mean((2, 3)).var().item() == pytest.approx(0.6**2 / 3 + 1 / 256, abs=0.02)
    assert torch.equal(
        Offset(strength=0).draw((4, 8, 8), Seeds(3), 7, [0]), Gaussian().draw((4, 8, 8), Seeds(3), 7, [0])
    )


@pytest.mark.parametrize("size", [(16, 16), (9, 24), (1, 5)])
def test_pyramid_noise_has_unit_power_and_more_of_it_in_the_coarse(size: tuple[int, int]) -> None:
    noise = Pyramid(discount=0.5).draw((4, *size), Seeds(3), 7, range(200))
    assert_close(noise.square().mean((1, 2, 3)), torch.ones(200))
    plain = Gaussian().draw((4, *size), Seeds(3), 7, range(200))
    assert noise.mean((2, 3)).var() > 1.2 * plain.mean((2, 3)).var()
