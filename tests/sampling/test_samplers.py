"""Solvers by the names that people give them; guidance; pictures to begin with."""

from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from trainer.core.device import Precision
from trainer.core.errors import RecipeError
from trainer.families.sd1 import Sd1
from trainer.families.sd2 import Sd2
from trainer.sampling.denoising import guided
from trainer.sampling.generate import Drawing, draw
from trainer.sampling.image_to_image import Start
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import SAMPLERS, TITLES, AnySampler, Lcm, Sampler, title_of, word_of
from trainer.sampling.understanding import understand

BASE = Path(__file__).parents[2] / "trainer" / "families" / "bundled_base"
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Euler a", "euler_a"),
        ("euler_ancestral", "euler_a"),
        ("k_euler_a", "euler_a"),
        ("DPM++ 2M Karras", "dpm++_2m_karras"),
        ("dpmpp_2m", "dpm++_2m"),
        ("dpmsolver++", "dpm++_2m"),
        ("DPM++ 2M SDE Karras", "dpm++_2m_sde_karras"),
        ("UniPC", "unipc"),
        ("uni_pc", "unipc"),
        ("DDIM", "ddim"),
        ("LCM", "lcm"),
        *((title, word) for word, title in TITLES.items()),
        *((word, word) for word in SAMPLERS),
    ],
)
def test_samplers_go_by_many_names(name: str, word: str) -> None:
    assert word_of(name) == word


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(RecipeError, match="no sampler called 'Eular'"):
        word_of("Eular")


def test_every_kind_has_a_word_and_a_title() -> None:
    kinds = {type(sampler) for sampler in SAMPLERS.values()}
    assert kinds == set(get_args(get_args(AnySampler)[0]))
    assert [title_of(sampler) for sampler in SAMPLERS.values()] == [TITLES[word] for word in SAMPLERS]


def test_a_distilled_sampler_says_how_many_steps_it_takes() -> None:
    with pytest.raises(RecipeError, match="at most 50 steps"):
        Lcm().check(51)
    Lcm().check(8)


def test_rescaled_guidance_has_the_spread_of_the_texts_own_prediction() -> None:
    halves = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with_words = halves.chunk(2)[1]
    pulled = guided(halves, 2, 7.0, 0.0)
    assert_close(pulled, halves.chunk(2)[0] + 7 * (with_words - halves.chunk(2)[0]))
    whole = guided(halves, 2, 7.0, 1.0)
    assert_close(whole.std(dim=(1, 2, 3)), with_words.std(dim=(1, 2, 3)))
    half = guided(halves, 2, 7.0, 0.5)
    assert_close(half, (pulled + whole) / 2)
    assert guided(with_words, 2, 7.0, 0.5) is with_words


def test_pure_noise_brings_rescaled_guidance_with_it(small_sd2: Path) -> None:
    def drawn(zero: bool, rescale: float | None) -> np.ndarray:
        model = Sd2(weights=str(small_sd2), zero_terminal_snr=zero).load(Precision.float32, CPU)
        how = Drawing(
            sampler=SAMPLERS["ddim"], settings=DrawSettings(steps=3, guidance=9, rescale=rescale), size=(16, 16)
        )
        return np.asarray(draw(model, understand(model, [Prompt(text="red")]), how)[0])

    assert np.array_equal(drawn(True, None), drawn(True, 0.7))
    assert not np.array_equal(drawn(True, None), drawn(True, 0.0))
    assert np.array_equal(drawn(False, None), drawn(False, 0.0))


def test_a_picture_to_begin_with_is_drawn_over_as_diffusers_does_it() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    model = Sd1().load(Precision.float32, CPU)
    picture = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    start = Start(picture, 0.6)
    latents = start.latents(model, 64, 64)
    how = Drawing(sampler=SAMPLERS["dpm++_2m"], settings=DrawSettings(steps=8), size=(64, 64), start=start)
    ours = draw(model, understand(model, [Prompt(text="red heart", seed=3)]), how)[0]
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(BASE, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = SAMPLERS["dpm++_2m"].scheduler(model.scheduler_config())
    answer: Any = pipe(  # typed as one of two things
        "red heart", image=latents, strength=0.6, num_inference_steps=8, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    theirs = answer.images[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 2


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_every_sampler_can_begin_with_a_picture(small_model: Path, sampler: Sampler) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, CPU)
    picture = Image.linear_gradient("L").convert("RGB")
    asked = understand(model, [Prompt(text="red", seed=seed) for seed in range(2)])

    begun = Start(picture, 1).latents(model, 16, 16)

    def changed(strength: float) -> float:
        how = Drawing(sampler=sampler, settings=DrawSettings(steps=8), size=(16, 16), start=Start(picture, strength))
        with patch.object(model, "decode_latents", wraps=model.decode_latents) as decode:
            draw(model, asked, how)
        return float((decode.call_args.args[0] - begun).abs().mean())

    assert changed(0.1) < 0.7 * changed(1.0)


def test_the_size_follows_the_picture() -> None:
    assert Start(Image.new("RGB", (300, 200)), 0.5).size(64, 8) == (80, 56)
    assert Start(Image.new("RGB", (64, 64)), 0.5).size(64, 8) == (64, 64)
    assert Start(Image.new("RGB", (1000, 1)), 0.5).size(64, 8) == (2024, 8)
