"""The family reads what it should, refuses what it should, and says the same as diffusers' own pipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.core.device import Precision
from trainer.core.errors import DataError, WeightsError
from trainer.families.loading import find_weights
from trainer.families.sd1 import Sd1

CPU = torch.device("cpu")


@pytest.fixture
def model_copy(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_words_and_prediction_are_those_of_diffusers(small_model: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(small_model, torch_dtype=torch.float32, safety_checker=None)
    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    captions = ["", "red heart, flat style", "a " * 200]
    states = model.encode_words(captions)
    for caption, state in zip(captions, states.tokens, strict=True):
        expected = pipe.encode_prompt(caption, CPU, 1, do_classifier_free_guidance=False)[0][0]
        torch.testing.assert_close(state, expected)
    noisy, t = torch.randn(3, 4, 4, 4), torch.tensor([0, 500, 999])
    with torch.no_grad():
        expected = pipe.unet(noisy, t, encoder_hidden_states=states.tokens).sample
        torch.testing.assert_close(model.predict(noisy, t, states), expected, atol=1e-5, rtol=1e-4)


def test_latents_have_the_factor_and_decode_back(small_model: Path) -> None:
    from diffusers import AutoencoderKL

    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    vae: Any = AutoencoderKL.from_pretrained(small_model / "vae", torch_dtype=torch.float32)
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.inference_mode():
        expected = vae.encode(pixels).latent_dist
        posterior = model.encode_pictures(pixels)
        torch.testing.assert_close(posterior.mean, expected.mean * 0.5, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(posterior.deviation, expected.std * 0.5, atol=1e-5, rtol=1e-4)
        decoded = vae.decode(expected.mean).sample
        torch.testing.assert_close(model.decode_latents(posterior.mean), decoded, atol=1e-4, rtol=1e-3)


def test_a_picture_of_a_wrong_size_is_refused(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    with pytest.raises(DataError, match="no multiple of 4"):
        model.encode_pictures(torch.zeros(1, 3, 16, 18))


def test_token_counts_are_those_of_the_words(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    assert model.count_tokens("") == 0
    assert model.count_tokens("red heart") == 2
    assert model.count_tokens("red " * 100) == 100


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "Stable Diffusion XL"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ("unet/config.json", {"cross_attention_dim": 1024}, "Stable Diffusion 2.x"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "another family .FluxPipeline"),
    ],
)
def test_another_family_is_named(model_copy: Path, file: str, changes: dict[str, object], says: str) -> None:
    change(model_copy / file, **changes)
    with pytest.raises(WeightsError, match=says):
        Sd1(weights=str(model_copy)).check()


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    for weights, says in (
        (str(tmp_path), "no model_index.json"),
        (str(tmp_path / "absent.safetensors"), "no such file"),
        ("nothing here", "no weights called"),
        ("owner/model-that-is-not-here", "no folder 'owner/model-that-is-not-here'"),
    ):
        with pytest.raises(WeightsError, match=says):
            find_weights(weights)


def test_pickles_are_refused_unopened(model_copy: Path, tmp_path: Path) -> None:
    armed = tmp_path / "model.ckpt"
    armed.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(WeightsError, match="can run code"):
        find_weights(str(armed))
    weights = model_copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".BIN"))
    with pytest.raises(WeightsError, match="can run code"):
        Sd1(weights=str(model_copy)).check()


def test_damaged_and_missing_parts_are_named(model_copy: Path) -> None:
    weights = model_copy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="unet of this model cannot be loaded"):
        _ = Sd1(weights=str(model_copy)).load(Precision.float32, CPU).denoiser
    shutil.rmtree(model_copy / "vae")
    with pytest.raises(WeightsError, match="has no vae"):
        Sd1(weights=str(model_copy)).check()


def test_a_missing_tokenizer_is_named_before_the_weights_are_read(model_copy: Path) -> None:
    shutil.rmtree(model_copy / "tokenizer")
    with pytest.raises(WeightsError, match="tokenizer of this model cannot be loaded"):
        Sd1(weights=str(model_copy)).check()


def test_an_encoders_identity_follows_its_weights(model_copy: Path) -> None:
    settings = Sd1(weights=str(model_copy))
    model = settings.load(Precision.float32, CPU)
    before = model.encoders()
    change(model_copy / "vae" / "config.json", scaling_factor=0.7)
    again, after = model.encoders(), settings.load(Precision.float32, CPU).encoders()
    assert again.pictures_identity == before.pictures_identity  # read once a model, since weights are gigabytes
    assert after.pictures_identity != before.pictures_identity
    assert after.words_identity == before.words_identity
