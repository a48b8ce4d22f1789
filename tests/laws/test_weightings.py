"""What each moment counts, for whatever the network predicts."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainer.objective.predictions import AnyPrediction, Epsilon, Prediction, Sample, Velocity
from trainer.objective.schedules import DiscreteSchedule
from trainer.objective.weightings import P2, AnyWeighting, Debiased, Flat, MinSnr, NoiseError, SoftMinSnr, Weighting

PREDICTIONS = [member() for member in get_args(get_args(AnyPrediction)[0])]
WEIGHTINGS = [member() for member in get_args(get_args(AnyWeighting)[0])]
SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHARES = [(Epsilon(), (1, 0)), (Velocity(), (1, 1)), (Sample(), (0, 1))]  # gain = first * SNR + second


def kind(member: object) -> str:
    return type(member).__name__


def snr_and_gain(prediction: Prediction, *, zero_terminal_snr: bool = False) -> tuple[Tensor, Tensor]:
    schedule = DiscreteSchedule.from_scheduler_config({**SD, "rescale_betas_zero_snr": zero_terminal_snr})
    t = schedule.moment(torch.arange(0, 1000, 37))
    a, s = schedule.at(t)
    return schedule.snr(t), prediction.gain(a, s)


def papers(snr: Tensor) -> list[tuple[Weighting, Tensor]]:
    """Each weighting with the weight of its paper in clean latents."""
    return [
        (NoiseError(), snr),
        (MinSnr(gamma=5), snr.clamp(max=5)),
        (SoftMinSnr(gamma=4), 1 / (1 / snr + 1 / 4)),  # with sigma^2 = 1 / SNR
        (Debiased(), snr.sqrt()),
        (P2(gamma=0.5, k=2), snr / (2 + snr).sqrt()),
    ]


@pytest.mark.parametrize(("prediction", "shares"), SHARES, ids=["epsilon", "velocity", "sample"])
def test_weights_are_those_of_the_papers_for_every_prediction(prediction: Prediction, shares: tuple[int, int]) -> None:
    """They divide by SNR, SNR + 1 and 1; a known bug adds 1 to velocity's weight instead."""
    snr, gain = snr_and_gain(prediction)
    said = papers(snr)
    assert {type(weighting) for weighting, _ in said} | {Flat} == {type(weighting) for weighting in WEIGHTINGS}
    for weighting, in_clean_latents in said:
        expected = in_clean_latents / (shares[0] * snr + shares[1])
        assert_close(weighting.weigh(snr, gain), expected, rtol=1e-4, atol=0, msg=kind(weighting))


@pytest.mark.parametrize(("prediction", "divisor"), SHARES, ids=["epsilon", "velocity", "sample"])
def test_min_snr_weights_are_those_of_the_paper(prediction: Prediction, divisor: tuple[int, int]) -> None:
    snr, gain = snr_and_gain(prediction)
    assert_close(
        MinSnr(gamma=5).weigh(snr, gain), snr.clamp(max=5) / (divisor[0] * snr + divisor[1]), rtol=1e-4, atol=0
    )


def test_debiased_weights_are_those_of_the_paper() -> None:
    snr, gain = snr_and_gain(Epsilon())
    assert_close(Debiased().weigh(snr, gain), snr.rsqrt(), rtol=1e-4, atol=0)


def test_soft_min_snr_touches_min_snr_at_both_ends_and_halves_its_corner() -> None:
    snr = torch.tensor([1e-4, 5.0, 1e5], dtype=torch.float64)
    ratio = SoftMinSnr(gamma=5).weigh(snr, snr) / MinSnr(gamma=5).weigh(snr, snr)
    assert_close(ratio, torch.tensor([1.0, 0.5, 1.0]).double(), rtol=1e-4, atol=0)


def test_p2_weights_are_those_of_the_paper() -> None:
    """Of epsilon's plain loss: 1 / (k + SNR)^gamma."""
    snr, gain = snr_and_gain(Epsilon())
    assert_close(P2(gamma=1, k=1).weigh(snr, gain), 1 / (1 + snr), rtol=1e-4, atol=0)
    assert_close(P2(gamma=0).weigh(snr, gain), torch.ones_like(snr), rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighting", [one for one in WEIGHTINGS if one.kind != "flat"], ids=kind)
def test_a_weighted_loss_means_the_same_for_every_prediction(weighting: Weighting) -> None:
    """Weight times gain is the weight in clean latents: one number, whatever is predicted."""
    in_clean = [weighting.weigh(*snr_and_gain(p)) * snr_and_gain(p)[1] for p in (Epsilon(), Velocity(), Sample())]
    assert_close(in_clean[0], in_clean[2], rtol=1e-4, atol=0)
    assert_close(in_clean[1], in_clean[2], rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=kind)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=kind)
def test_weights_stay_finite_up_to_pure_noise(weighting: Weighting, prediction: Prediction) -> None:
    nothing, all_noise = torch.zeros(1), torch.ones(1)
    assert torch.isfinite(weighting.weigh(nothing, prediction.gain(nothing, all_noise))).all()
    weight = weighting.weigh(*snr_and_gain(prediction, zero_terminal_snr=True))
    assert torch.isfinite(weight).all()
    assert (weight >= 0).all()
