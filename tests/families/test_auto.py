"""The family that is found is the one that the weights are of, and it is said once."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.families import AnyFamily
from trainer.families.auto import Auto, in_words
from trainer.families.loading import open_weights
from trainer.families.sd1 import Sd1
from trainer.families.sd2 import Sd2
from trainer.families.sdxl import Sdxl
from trainer.families.source import ModelFacts, WeightsSource
from trainer.objective.predictions import Epsilon, Velocity

CPU = torch.device("cpu")


def test_each_family_is_found(small_model: Path, small_sd2: Path, small_sdxl: Path) -> None:
    for folder, family in ((small_model, Sd1), (small_sd2, Sd2), (small_sdxl, Sdxl)):
        auto = Auto(weights=str(folder), token_limit=150)
        auto.check()
        assert auto.found == family(weights=str(folder), token_limit=150)
        model = auto.load(Precision.float32, CPU)
        assert model.family == auto.found.kind
        assert model.token_limit == 150


def test_what_was_found_is_said_once(small_sdxl: Path, caplog: pytest.LogCaptureFixture) -> None:
    auto = Auto(weights=str(small_sdxl))
    with caplog.at_level(logging.INFO, logger="trainer"):
        auto.check()
        auto.load(Precision.float32, CPU)
        auto.load(Precision.float32, CPU)
    said = [record.getMessage() for record in caplog.records if str(small_sdxl) in record.getMessage()]
    assert len(said) == 1
    assert "Stable Diffusion XL, predicts epsilon, stored in float32" in said[0]


def test_all_that_is_known_is_in_the_words() -> None:
    facts = ModelFacts(
        family="sd2", prediction="velocity", zero_terminal_snr=True, precision="float16", said=("marker v_pred",)
    )
    expected = "Stable Diffusion 2.x, predicts velocity, stored in float16, zero terminal SNR (marker v_pred)"
    assert in_words(facts) == expected


def test_contradictions_are_errors_before_anything_is_loaded(small_sdxl: Path, copied: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="has a clip_skip, and these weights are Stable Diffusion XL"):
        Auto(weights=str(small_sdxl), clip_skip=2).check()
    with pytest.raises(WeightsError, match="predict velocity, and they themselves say epsilon"):
        Auto(weights=str(small_sdxl), prediction="velocity").check()
    with pytest.raises(WeightsError, match="inpainting"):
        Auto(weights=str(copied(small_sdxl, {"unet/config.json": {"in_channels": 9}}))).check()


def test_where_the_weights_do_not_say_what_they_predict_the_recipe_does(
    small_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_silent(weights: str, vae: str | None = None) -> WeightsSource:
        source = open_weights(weights, vae)
        source.facts = replace(source.facts, prediction_guessed=True)
        return source

    monkeypatch.setattr("trainer.families.stable_diffusion.open_weights", open_silent)
    guessed = Auto(weights=str(small_sdxl)).load(Precision.float32, CPU)
    assert (guessed.prediction, guessed.scheduler_config()["prediction_type"]) == (Epsilon(), "epsilon")
    told = Auto(weights=str(small_sdxl), prediction="velocity", zero_terminal_snr=True).load(Precision.float32, CPU)
    assert (told.prediction, told.scheduler_config()["prediction_type"]) == (Velocity(), "v_prediction")
    assert told.zero_terminal_snr


def test_a_clip_skip_goes_to_the_family_that_has_one(small_model: Path) -> None:
    assert Auto(weights=str(small_model), clip_skip=1).found == Sd1(weights=str(small_model), clip_skip=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sdxl"},  # which weights?
        {"kind": "sd2", "weights": "x", "clip_skip": 2},
        {"kind": "sdxl", "weights": "x", "vae_precision": "float16"},
        {"kind": "sd1", "token_limit": 100},
        {"kind": "sd1", "clip_skip": 0},
        {"kind": "sd1", "prediction": "sample"},
        {"kind": "sd3", "weights": "x"},
    ],
)
def test_what_a_family_does_not_have_cannot_be_asked_for(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter[Any](AnyFamily).validate_python(wrong)
