"""Stable Diffusion XL says and draws what diffusers' own pipeline does, and what was computed by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.batch import Geometry
from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.families.model import DiffusionModel
from trainer.families.sdxl import Sdxl

CPU = torch.device("cpu")
CAPTIONS = ["", "red heart, flat style", "hello! there!", "a " * 200]


def open_model(folder: Path, **settings: Any) -> DiffusionModel:
    return Sdxl(weights=str(folder), **settings).load(Precision.float32, CPU)


def test_words_and_pooled_words_are_those_of_diffusers(small_sdxl: Path, pipeline_of: Callable[..., Any]) -> None:
    pipe, model = pipeline_of(small_sdxl), open_model(small_sdxl)
    words = model.encode_words(CAPTIONS)
    assert words.tokens.shape == (4, 77, 16 + 12)
    assert words.pooled is not None
    assert words.pooled.shape == (4, 12)
    for caption, state, pooled in zip(CAPTIONS, words.tokens, words.pooled, strict=True):
        expected, _, expected_pooled, _ = pipe.encode_prompt(caption, device=CPU, do_classifier_free_guidance=False)
        torch.testing.assert_close(state, expected[0])
        torch.testing.assert_close(pooled, expected_pooled[0])


def test_sizes_and_crops_reach_the_network_as_height_and_width(
    small_sdxl: Path, pipeline_of: Callable[..., Any]
) -> None:
    pipe, model = pipeline_of(small_sdxl), open_model(small_sdxl)
    noisy, t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
    words = model.encode_words(["red heart", "blue"])
    geometry = Geometry(
        original=torch.tensor([[1500, 1023], [300, 200]]),
        crop=torch.tensor([[16, 0], [0, 8]]),
        target=torch.tensor([[1216, 832], [1024, 1024]]),
    )
    sizes = torch.tensor([[1500, 1023, 16, 0, 1216, 832], [300, 200, 0, 8, 1024, 1024]])
    # diffusers takes pairs of height and width, one picture at a time
    for row, (original, crop, target) in zip(sizes, [((1500, 1023), (16, 0), (1216, 832))], strict=False):
        own = pipe._get_add_time_ids(original, crop, target, torch.float32, text_encoder_projection_dim=12)
        assert torch.equal(own[0], row.float())
    with torch.no_grad():
        added = {"text_embeds": words.pooled, "time_ids": sizes.float()}
        expected = pipe.unet(noisy, t, encoder_hidden_states=words.tokens, added_cond_kwargs=added).sample
        torch.testing.assert_close(model.predict(noisy, t, words, geometry), expected, atol=1e-5, rtol=1e-4)
        whole = Geometry.whole(2, 16, 16, CPU)
        assert torch.equal(model.predict(noisy, t, words), model.predict(noisy, t, words, whole))
        assert not torch.allclose(model.predict(noisy, t, words), expected, atol=1e-4)


def test_sixteen_bits_predict_nearly_the_same(small_sdxl: Path) -> None:
    plain = open_model(small_sdxl)
    words, noisy, t = plain.encode_words(["red heart"]), torch.ones(1, 4, 4, 4), torch.tensor([700])
    short = Sdxl(weights=str(small_sdxl)).load(Precision.bfloat16, CPU)
    with torch.no_grad():
        expected, rough = plain.predict(noisy, t, words), short.predict(noisy, t, words)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), expected, atol=0.05, rtol=0.05)
    assert torch.equal(short.encode_words(["red heart"]).tokens, words.tokens)  # text encoders stay in float32


def test_pictures_are_those_of_diffusers(
    small_sdxl: Path, copied: Callable[..., Path], pipeline_of: Callable[..., Any], drawn_alike: Callable[..., Tensor]
) -> None:
    """No negative prompt means zeros, or the states of no words, as the model's own index says."""
    model, pipe = open_model(small_sdxl), pipeline_of(small_sdxl)
    zeros = drawn_alike(model, pipe, "red heart")
    named = drawn_alike(model, pipe, "red heart", "blue")
    folder = copied(small_sdxl, {"model_index.json": {"force_zeros_for_empty_prompt": False}})
    empty = drawn_alike(open_model(folder), pipeline_of(folder), "red heart")
    assert (zeros - empty).abs().max() > 1e-3
    assert (zeros - named).abs().max() > 1e-3


def test_velocity_with_a_last_step_of_pure_noise_draws_the_picture_of_diffusers(
    small_sdxl: Path, copied: Callable[..., Path], pipeline_of: Callable[..., Any], drawn_alike: Callable[..., Tensor]
) -> None:
    folder = copied(small_sdxl, {"scheduler/scheduler_config.json": {"prediction_type": "v_prediction"}})
    pipe = pipeline_of(folder, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    drawn_alike(open_model(folder, zero_terminal_snr=True), pipe, "red heart", guidance_rescale=0.7)


def test_training_sees_the_states_of_no_words_and_never_zeros(small_sdxl: Path) -> None:
    model = open_model(small_sdxl)
    trained, drawn = model.encode_words([""]), model.encode_negatives(["", "blue"])
    assert trained.tokens.abs().max() > 0.1
    assert drawn.pooled is not None
    assert not drawn.tokens[0].any()
    assert not drawn.pooled[0].any()
    torch.testing.assert_close(drawn.tokens[1:], model.encode_words(["blue"]).tokens)


@pytest.mark.parametrize("limit", [150, 225])
def test_long_prompts_are_the_chunks_encoded_by_hand(small_sdxl: Path, limit: Any) -> None:
    model = open_model(small_sdxl, token_limit=limit)
    words = model.encode_words(["red " * 80])
    vocabulary = json.loads((small_sdxl / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    start, end, red = (vocabulary[word] for word in ("<|startoftext|>", "<|endoftext|>", "red</w>"))
    states: list[list[Tensor]] = [[], []]
    pooled = torch.empty(0)
    for place, (part, padding) in enumerate((("text_encoder", end), ("text_encoder_2", vocabulary["!"]))):
        network: Any = model.network(part)
        for number, count in enumerate((75, 5, 0)[: limit // 75]):
            ids = torch.tensor([[start, *[red] * count, end, *[padding] * (75 - count)]])
            with torch.no_grad():
                answer = network(ids, output_hidden_states=True)
            states[place].append(answer.hidden_states[len(answer.hidden_states) - 2][0])
            if number == 0 and part == "text_encoder_2":
                pooled = network.text_projection(answer.last_hidden_state[0, 76])  # 75 words stand before the end mark
    by_hand = [torch.cat([one[0][:1], *(chunk[1:76] for chunk in one), one[-1][76:]]) for one in states]
    torch.testing.assert_close(words.tokens[0], torch.cat(by_hand, dim=-1))
    assert words.pooled is not None
    torch.testing.assert_close(words.pooled[0], pooled.detach())


def test_pooled_words_are_taken_at_the_first_end_mark_though_tokens_were_added(
    small_sdxl: Path, copied: Callable[..., Path]
) -> None:
    """An added token has a greater number than the end mark, which looking for the greatest one would take for it."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    folder = copied(small_sdxl, {})
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    tokenizer.add_tokens(["<thing>"])
    tokenizer.save_pretrained(folder / "tokenizer_2")
    network: Any = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
    torch.manual_seed(0)
    network.resize_token_embeddings(6077)
    network.save_pretrained(folder / "text_encoder_2")
    ids = tokenizer("red <thing> heart", padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert ids[0, :5].tolist()[2] == 6076
    assert ids[0, :5].tolist()[4] == tokenizer.eos_token_id == 6075
    with torch.no_grad():
        answer = network.eval()(ids)
        expected = network.text_projection(answer.last_hidden_state[:, 4])
    pooled = open_model(folder).encode_words(["red <thing> heart"]).pooled
    assert pooled is not None
    torch.testing.assert_close(pooled, expected)
    assert not torch.allclose(pooled, answer.text_embeds, atol=1e-3)  # what transformers finds by this configuration


def test_the_autoencoder_is_never_in_float16(small_sdxl: Path) -> None:
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents: dict[str, Tensor] = {}
    identities: set[str] = set()
    for kind in ("float32", "bfloat16"):
        model = Sdxl(weights=str(small_sdxl), vae_precision=kind).load(Precision.float16, CPU)
        posterior = model.encode_pictures(pixels)
        assert posterior.mean.dtype == torch.float32
        latents[kind] = posterior.mean
        identities.add(model.encoders().pictures_identity)
        assert torch.isfinite(model.decode_latents(posterior.mean)).all()
    assert len(identities) == 2
    assert not torch.equal(latents["float32"], latents["bfloat16"])
    torch.testing.assert_close(latents["float32"], latents["bfloat16"], atol=0.02, rtol=0.05)


def test_identities_follow_both_text_encoders(small_sdxl: Path, copied: Callable[..., Path]) -> None:
    before = open_model(small_sdxl).encoders()
    for file in ("text_encoder_2/config.json", "tokenizer_2/tokenizer_config.json", "tokenizer/tokenizer_config.json"):
        after = open_model(copied(small_sdxl, {file: {"a_word": file}})).encoders()
        assert after.words_identity != before.words_identity
        assert after.pictures_identity == before.pictures_identity
    assert open_model(small_sdxl, token_limit=225).encoders().words_identity != before.words_identity


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unet/config.json": {"in_channels": 9}}, "inpainting"),
        ({"unet/config.json": {"projection_class_embeddings_input_dim": 52}}, "may be a refiner"),
        ({"unet/config.json": {"cross_attention_dim": 12}}, "reads words of 12 numbers, and they have 28"),
        ({"vae/config.json": {"latents_mean": [0.1] * 4}}, "scales each channel by itself"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    small_sdxl: Path, copied: Callable[..., Path], changes: Any, says: str
) -> None:
    with pytest.raises(WeightsError, match=says):
        Sdxl(weights=str(copied(small_sdxl, changes))).check()


def test_words_without_pooled_states_are_no_words_for_this_family(small_sdxl: Path) -> None:
    from trainer.batch import Conditioning

    with pytest.raises(ValueError, match="pooled"):
        open_model(small_sdxl).predict(
            torch.zeros(1, 4, 4, 4), torch.tensor([1]), Conditioning(tokens=torch.zeros(1, 77, 28))
        )


def test_trained_text_encoders_stay_and_learn(small_sdxl: Path) -> None:
    model = open_model(small_sdxl)
    before = model.network("text_encoder_2")
    model.release_encoders()
    assert model.network("text_encoder_2") is not before
    model.keep_text_encoders()
    kept = [model.network(part) for part in model.text_parts.values()]
    model.encode_pictures(torch.zeros(1, 3, 16, 16))
    model.release_encoders()
    assert [model.network(part) for part in model.text_parts.values()] == kept
    for network in kept:
        network.requires_grad_(requires_grad=True).train()
    words = model.encode_words_live(["red heart", "blue"])
    assert words.pooled is not None
    torch.testing.assert_close(words.tokens, model.encode_words(["red heart", "blue"]).tokens)
    assert all(network.training for network in kept)  # encoding without gradients left them as they were
    (words.tokens.square().sum() + words.pooled.square().sum()).backward()
    first = {name: p.grad.clone() for name, p in kept[1].named_parameters() if p.grad is not None}
    assert "text_projection.weight" in first
    assert first["text_model.encoder.layers.3.mlp.fc1.weight"].abs().max() > 0  # the last layer, through pooled words

    model.use_gradient_checkpointing()
    kept[1].zero_grad()
    again = model.encode_words_live(["red heart", "blue"])
    assert again.pooled is not None
    (again.tokens.square().sum() + again.pooled.square().sum()).backward()
    for name, parameter in kept[1].named_parameters():
        if name in first:
            torch.testing.assert_close(parameter.grad, first[name])
