"""Stable Diffusion 2.x, with epsilon and with velocity, says and draws what diffusers' own pipeline does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.families.sd2 import Sd2
from trainer.objective.predictions import Epsilon, Velocity

CPU = torch.device("cpu")
CAPTIONS = ["", "red heart, flat style", "hello! there!", "a " * 200]
EPSILON = {"scheduler/scheduler_config.json": {"prediction_type": "epsilon"}}


def open_model(folder: Path, **settings: Any) -> DiffusionModel:
    return Sd2(weights=str(folder), **settings).load(Precision.float32, CPU)


def test_words_and_prediction_are_those_of_diffusers(small_sd2: Path, pipeline_of: Callable[..., Any]) -> None:
    pipe, model = pipeline_of(small_sd2), open_model(small_sd2)
    states = model.encode_words(CAPTIONS)
    for caption, state in zip(CAPTIONS, states.tokens, strict=True):
        expected = pipe.encode_prompt(caption, CPU, 1, do_classifier_free_guidance=False)[0][0]
        torch.testing.assert_close(state, expected)
    noisy, t = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 500, 900, 999])
    with torch.no_grad():
        expected = pipe.unet(noisy, t, encoder_hidden_states=states.tokens).sample
        torch.testing.assert_close(model.predict(noisy, t, states), expected, atol=1e-5, rtol=1e-4)


def test_velocity_and_epsilon_draw_the_pictures_of_diffusers(
    small_sd2: Path,
    copied: Callable[..., Path],
    pipeline_of: Callable[..., Any],
    drawn_alike: Callable[..., Tensor],
) -> None:
    first = open_model(small_sd2)
    assert first.prediction == Velocity()
    velocity = drawn_alike(first, pipeline_of(small_sd2), "red heart", "blue")
    folder = copied(small_sd2, EPSILON)
    second = open_model(folder)
    assert second.prediction == Epsilon()
    epsilon = drawn_alike(second, pipeline_of(folder), "red heart", "blue")
    assert (velocity - epsilon).abs().max() > 0.1


def test_the_last_step_of_pure_noise_is_in_training_and_in_pictures(
    small_sd2: Path, pipeline_of: Callable[..., Any], drawn_alike: Callable[..., Tensor]
) -> None:
    model = open_model(small_sd2, zero_terminal_snr=True)
    pipe = pipeline_of(small_sd2, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    last = model.schedule.moment(torch.tensor([999]))
    assert float(model.schedule.snr(last)) == 0.0
    torch.testing.assert_close(model.schedule.signal.square(), pipe.scheduler.alphas_cumprod, atol=1e-6, rtol=1e-4)
    assert int(pipe.scheduler.num_inference_steps or 0) == 0  # nothing was drawn with it yet
    changed = drawn_alike(model, pipe, "red heart", guidance_rescale=0.7)  # which is our default for such models
    assert int(pipe.scheduler.timesteps[0]) == 999  # the step that was changed is among those that draw
    plain = drawn_alike(open_model(small_sd2), pipeline_of(small_sd2), "red heart")
    assert (changed - plain).abs().max() > 0.05


def test_weights_that_end_in_noise_say_so_themselves(small_sd2: Path, copied: Callable[..., Path]) -> None:
    folder = copied(small_sd2, {"scheduler/scheduler_config.json": {"rescale_betas_zero_snr": True}})
    last = torch.tensor([0.9999])
    said, denied = open_model(folder), open_model(folder, zero_terminal_snr=False)
    assert float(said.schedule.snr(last)) == 0.0
    assert float(denied.schedule.snr(last)) > 1e-3
    assert said.scheduler_config()["timestep_spacing"] == "trailing"
    assert denied.scheduler_config()["timestep_spacing"] == "leading"
    assert denied.scheduler_config()["rescale_betas_zero_snr"] is False


def test_the_last_layer_of_what_is_loaded_is_the_last_but_one_of_the_whole_encoder(
    small_sd2: Path, tmp_path: Path, copied: Callable[..., Path]
) -> None:
    """OpenCLIP's encoder of 24 layers is published with 23 of them: read as the others read the whole one."""
    from transformers import CLIPTextModel

    folder = copied(small_sd2, {})
    short: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    configuration = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    long: Any = CLIPTextModel(type(short.config)(**(configuration | {"num_hidden_layers": 4})))
    torch.manual_seed(0)
    long.load_state_dict(short.state_dict(), strict=False)  # all but the fourth layer
    model = open_model(folder)
    ids = pad_by_hand(folder, "red heart")
    with torch.no_grad():
        states = long.eval()(ids, output_hidden_states=True).hidden_states[-2]
        expected = long.final_layer_norm(states)
    torch.testing.assert_close(model.encode_words(["red heart"]).tokens, expected)


def pad_by_hand(folder: Path, caption: str) -> Tensor:
    """Tokens [1 77], padded with `!`."""
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    words = [vocabulary[f"{word}</w>"] for word in caption.split()]
    marked = [vocabulary["<|startoftext|>"], *words, vocabulary["<|endoftext|>"]]
    return torch.tensor([marked + [vocabulary["!"]] * (77 - len(marked))])


@pytest.mark.parametrize("limit", [150, 225])
def test_long_prompts_are_the_chunks_encoded_by_hand(small_sd2: Path, limit: Any) -> None:
    model = open_model(small_sd2, token_limit=limit)
    network: Any = model.network("text_encoder")
    states = model.encode_words(["red " * 80]).tokens[0]
    with torch.no_grad():
        first, second, empty = (network(pad_by_hand(small_sd2, "red " * count))[0][0] for count in (75, 5, 0))
    middle = [second[1:76], empty[1:76]][: limit // 75 - 1]
    last = empty if limit == 225 else second
    torch.testing.assert_close(states, torch.cat([first[:76], *middle, last[76:]]))


def test_what_the_weights_say_is_not_contradicted(small_sd2: Path, copied: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match=r"predict epsilon, and they themselves say velocity"):
        Sd2(weights=str(small_sd2), prediction="epsilon").check()
    Sd2(weights=str(small_sd2), prediction="velocity").check()
    with pytest.raises(
        WeightsError, match=r"asks for Stable Diffusion 1.x, and these weights are Stable Diffusion 2.x"
    ):
        Sd1(weights=str(small_sd2)).check()
    with pytest.raises(WeightsError, match="cannot have a last step of pure noise"):
        Sd2(weights=str(copied(small_sd2, EPSILON)), zero_terminal_snr=True).check()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unet/config.json": {"in_channels": 9}}, "inpainting"),
        ({"unet/config.json": {"class_embed_type": "projection"}}, "more than words"),
    ],
)
def test_extended_models_are_refused(small_sd2: Path, copied: Callable[..., Path], changes: Any, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        Sd2(weights=str(copied(small_sd2, changes))).check()
