"""The family reads what it should, refuses what it should, and says the same as diffusers' own pipeline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.core.device import Precision
from trainer.core.errors import DataError, NonFiniteError, WeightsError
from trainer.core.tensors import write_tensors
from trainer.families.auto import Auto
from trainer.families.loading import open_weights
from trainer.families.sd1 import Sd1
from trainer.weights.base_loras import BaseLora

CPU = torch.device("cpu")


@pytest.fixture
def deep_model(model_copy: Path) -> Path:
    """The small model with a text encoder of four layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=6076, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
                max_position_embeddings=77, bos_token_id=6074, eos_token_id=6075, pad_token_id=6075,
            )
        ).save_pretrained(model_copy / "text_encoder")  # fmt: skip
    return model_copy


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
            open_weights(weights)


def test_pickles_are_refused_unopened(model_copy: Path, tmp_path: Path) -> None:
    armed = tmp_path / "model.ckpt"
    armed.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(WeightsError, match="can run code"):
        open_weights(str(armed))
    weights = model_copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".BIN"))
    with pytest.raises(WeightsError, match="can run code"):
        Sd1(weights=str(model_copy)).check()


def test_damaged_and_missing_parts_are_named(model_copy: Path) -> None:
    weights = model_copy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="no whole safetensors file"):
        Sd1(weights=str(model_copy)).check()
    weights.write_bytes(whole)
    shutil.rmtree(model_copy / "vae")
    with pytest.raises(WeightsError, match="has no autoencoder"):
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


@pytest.mark.parametrize("clip_skip", [1, 2, 4])
def test_skipped_layers_are_counted_from_the_last_and_normed(
    deep_model: Path, pipeline_of: Callable[..., Any], clip_skip: int
) -> None:
    model = Sd1(weights=str(deep_model), clip_skip=clip_skip).load(Precision.float32, CPU)
    pipe = pipeline_of(deep_model)
    captions = ["", "red heart, flat style", "a " * 200]
    for caption, state in zip(captions, model.encode_words(captions).tokens, strict=True):
        # diffusers counts the layers that are left out, the others those from the end
        expected = pipe.encode_prompt(caption, CPU, 1, do_classifier_free_guidance=False, clip_skip=clip_skip - 1)[0]
        torch.testing.assert_close(state, expected[0])
        ids = pipe.tokenizer(caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            layers = pipe.text_encoder(ids.input_ids, output_hidden_states=True).hidden_states
            by_hand = pipe.text_encoder.final_layer_norm(layers[4 - clip_skip + 1])  # 0 are the embeddings
        torch.testing.assert_close(state, by_hand[0])


def test_pictures_with_skipped_layers_are_those_of_diffusers(
    deep_model: Path, pipeline_of: Callable[..., Any], drawn_alike: Callable[..., Tensor]
) -> None:
    pipe = pipeline_of(deep_model)
    drawn: list[Tensor] = []
    for clip_skip in (1, 2):
        model = Sd1(weights=str(deep_model), clip_skip=clip_skip).load(Precision.float32, CPU)
        # given as states, since diffusers itself skips nothing for negative prompts
        states = [
            pipe.encode_prompt(text, CPU, 1, do_classifier_free_guidance=False, clip_skip=clip_skip - 1)[0].detach()
            for text in ("red heart", "blue")
        ]
        given = {"prompt": None, "negative_prompt": None, "prompt_embeds": states[0]}
        drawn.append(drawn_alike(model, pipe, "red heart", "blue", **given, negative_prompt_embeds=states[1]))
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


def test_more_layers_than_there_are_cannot_be_skipped(deep_model: Path) -> None:
    Sd1(weights=str(deep_model), clip_skip=4).check()
    with pytest.raises(WeightsError, match="has 4 layers, so clip_skip cannot be 5"):
        Sd1(weights=str(deep_model), clip_skip=5).check()


def test_a_skipped_layer_is_part_of_the_identity_of_words(deep_model: Path) -> None:
    first, second = (
        Sd1(weights=str(deep_model), clip_skip=number).load(Precision.float32, CPU).encoders() for number in (1, 2)
    )
    assert first.words_identity != second.words_identity
    assert first.pictures_identity == second.pictures_identity


def test_a_shift_of_the_latents_is_undone_in_decoding(model_copy: Path) -> None:
    plain = Sd1(weights=str(model_copy)).load(Precision.float32, CPU)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    before = plain.encode_pictures(pixels)
    change(model_copy / "vae" / "config.json", shift_factor=0.25)
    shifted = Sd1(weights=str(model_copy)).load(Precision.float32, CPU)
    after = shifted.encode_pictures(pixels)
    torch.testing.assert_close(after.mean, before.mean - 0.25 * 0.5)  # (z - shift) * factor
    torch.testing.assert_close(after.deviation, before.deviation)
    torch.testing.assert_close(shifted.decode_latents(after.mean), plain.decode_latents(before.mean))
    assert shifted.encoders().pictures_identity != plain.encoders().pictures_identity


def test_numbers_that_are_not_finite_make_no_picture(model_copy: Path) -> None:
    model = Sd1(weights=str(model_copy)).load(Precision.float32, CPU)
    with pytest.raises(NonFiniteError, match="network gave numbers"):
        model.decode_latents(torch.full((1, 4, 4, 4), float("nan")))
    with pytest.raises(NonFiniteError, match="autoencoder gave numbers"):
        model.decode_latents(torch.full((1, 4, 4, 4), 3e38))


def test_an_autoencoder_of_another_family_is_named(small_model: Path, tmp_path: Path) -> None:
    foreign = Path(shutil.copytree(small_model / "vae", tmp_path / "vae"))
    change(foreign / "config.json", scaling_factor=0.13025)
    with pytest.raises(WeightsError, match=r"autoencoder is one of another family \(its factor is 0.13025\)"):
        Sd1(weights=str(small_model), vae=str(foreign)).check()
    change(foreign / "config.json", scaling_factor=0.6)
    own, other = (
        Sd1(weights=str(small_model), vae=vae).load(Precision.float32, CPU).encode_pictures(torch.ones(1, 3, 16, 16))
        for vae in (None, str(foreign))
    )
    torch.testing.assert_close(other.mean, own.mean * (0.6 / 0.5))
    change(foreign / "config.json", latent_channels=16)
    with pytest.raises(WeightsError):
        Sd1(weights=str(small_model), vae=str(foreign)).check()


def test_words_are_encoded_live_with_gradients_and_otherwise_without(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    model.keep_text_encoders()
    model.network("text_encoder").requires_grad_(requires_grad=True)
    live, still = model.encode_words_live(["red"]), model.encode_words(["red"])
    assert live.tokens.requires_grad
    assert not still.tokens.requires_grad
    assert torch.equal(live.tokens, still.tokens)


def test_a_text_encoder_answers_at_rest_while_it_is_trained(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    model.keep_text_encoders()
    network: Any = model.network("text_encoder")
    network.encoder.layers[0].mlp.fc1 = torch.nn.Sequential(network.encoder.layers[0].mlp.fc1, torch.nn.Dropout(0.5))
    network.train()
    first, second = (model.encode_words(["red"]).tokens for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(model.encode_words_live(["red"]).tokens, first)


def test_old_scheduler_settings_are_mended_as_diffusers_does(model_copy: Path) -> None:
    path = model_copy / "scheduler" / "scheduler_config.json"
    change(path, clip_sample=True, steps_offset=0)
    config = Sd1(weights=str(model_copy)).load(Precision.float32, CPU).scheduler_config()
    assert (config["clip_sample"], config["steps_offset"]) == (False, 1)
    assert config["prediction_type"] == "v_prediction"


def test_the_size_that_the_weights_were_made_for(small_model: Path) -> None:
    assert Sd1(weights=str(small_model)).load(Precision.float32, CPU).resolution == 16
    assert Sd1().load(Precision.float32, CPU).resolution == 64


def test_loras_become_part_of_the_weights(small_model: Path, tmp_path: Path) -> None:
    base = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    layer = next(name for name, _ in base.denoiser.named_modules() if name.endswith("attn1.to_q"))
    weight = base.denoiser.get_parameter(f"{layer}.weight")
    down, up = torch.full((1, weight.shape[1]), 0.5), torch.full((weight.shape[0], 1), 0.25)
    name, file = base.naming.to_kohya(f"unet.{layer}"), tmp_path / "some.safetensors"
    write_tensors(file, {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up})
    for settings in (Sd1, Auto):
        changed = settings(weights=str(small_model), loras=(BaseLora(file=file, strength=0.5),))
        changed.check()
        assert changed.files == {"model.loras.0.file": file}
        after = changed.load(Precision.float32, CPU).denoiser.get_parameter(f"{layer}.weight")
        torch.testing.assert_close(after, weight + 0.5 * 0.125)
    write_tensors(file, {f"{name}.lora_down.weight": down})
    with pytest.raises(WeightsError):
        Sd1(weights=str(small_model), loras=(BaseLora(file=file),)).check()
