"""Our pictures are those that diffusers draws."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer.adapters.attaching import attach_lora
from trainer.adapters.lora import Lora
from trainer.batch import Conditioning, Geometry
from trainer.core.device import Precision
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.families.sd2 import Sd2
from trainer.families.sdxl import Sdxl
from trainer.sampling.generate import Drawing, draw, drawn, generate
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import SAMPLERS, Sampler
from trainer.sampling.understanding import understand
from trainer.weights.export import ExportSettings, export
from trainer.weights.lora_state import LoraState
from trainer.weights.metadata import TrainingFacts
from trainer.weights.reading import read_lora

# Imports nothing of ours: this is what a person who was given the file would write.
PLAIN_DIFFUSERS = """
import sys, torch
from diffusers import StableDiffusionPipeline
base, lora, prompt, seed, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, safety_checker=None)
pipe.load_lora_weights(lora)
picture = pipe(prompt, num_inference_steps=8, guidance_scale=4.0, width=64, height=64,
               generator=torch.Generator().manual_seed(int(seed))).images[0]
picture.save(out)
"""


def open_bundled() -> DiffusionModel:
    return Sd1().load(Precision.float32, torch.device("cpu"))


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on the bundled base that changes pictures plainly: up matrices at random."""
    model = open_bundled()
    trainable = Lora(rank=4, alpha=2, layers=("attention", "convolution")).attach(model, Seeds(1))
    state = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        for name, tensor in trainable.state().items()
    }
    path = tmp_path_factory.mktemp("lora") / "some.safetensors"
    facts = TrainingFacts(
        name="some", family="sd1", prediction="velocity", resolution=(64, 64), rank=4, alpha=2, convolutions=True,
        steps=1, epoch=0, steps_asked=1, batch=1, seed=1, optimizer="adamw", rate=1e-3,
    )  # fmt: skip
    export(path, LoraState(tensors=state, alphas=trainable.alphas()), model.naming, facts, ExportSettings())
    return path


def test_a_plain_diffusers_script_draws_the_same_picture(lora_file: Path, tmp_path: Path) -> None:
    prompt, seed = "red heart, flat style", 11
    base = Path(__file__).parents[2] / "trainer" / "families" / "bundled_base"
    out = tmp_path / "plain.png"
    arguments = [str(base), str(lora_file), prompt, str(seed), str(out)]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_DIFFUSERS, *arguments], capture_output=True, text=True, check=True
    )
    said = (done.stdout + done.stderr).lower()
    assert "unexpected keys" not in said
    assert "missing keys" not in said

    model = open_bundled()
    asked = [Prompt(text=prompt, seed=seed)]
    bare = generate(model, asked, SAMPLERS["ddim"], DrawSettings(steps=8), (64, 64))[0]
    attach_lora(model, read_lora(lora_file, model.naming).state)
    ours = generate(model, asked, SAMPLERS["ddim"], DrawSettings(steps=8), (64, 64))[0]
    with Image.open(out) as plain:
        assert difference(ours, plain) <= 2
        assert difference(bare, plain) > 30  # the file does change the picture


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_a_picture_does_not_depend_on_its_company(small_model: Path, sampler: Sampler) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    asked = [Prompt(text=f"ball {n}", seed=n, negative="tag" if n % 2 else "") for n in range(3)]
    settings = DrawSettings(steps=4, batch=3)
    together = generate(model, asked, sampler, settings, (16, 16))
    alone = [generate(model, [prompt], sampler, settings, (16, 16))[0] for prompt in asked]
    assert max(difference(a, b) for a, b in zip(together, alone, strict=True)) <= 2


def test_sizes_of_their_own_and_order_are_kept(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    asked = [Prompt(text="a", width=32), Prompt(text="b"), Prompt(text="c", width=20, height=24)]
    sizes = [p.size for p in generate(model, asked, SAMPLERS["ddim"], DrawSettings(steps=2), (16, 16))]
    assert sizes == [(32, 16), (16, 16), (24, 24)]  # rounded up to what the networks take


def test_drawing_leaves_the_model_and_chance_as_they_were(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    model.denoiser.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generate(model, [Prompt(text="a")], SAMPLERS["euler_a"], DrawSettings(steps=2), (16, 16))
    assert model.denoiser.training
    assert torch.equal(before, torch.get_rng_state())


def test_pooled_words_and_sizes_go_with_their_picture(small_sdxl: Path) -> None:
    model = Sdxl(weights=str(small_sdxl)).load(Precision.float32, torch.device("cpu"))
    asked = [
        Prompt(text=f"ball {n}", seed=n, negative="tag" if n % 2 else "", width=24 if n == 2 else None)
        for n in range(4)
    ]
    settings = DrawSettings(steps=3, batch=3)
    seen: list[Geometry] = []
    plain = model.predict

    def predict(noisy: Tensor, t: Tensor, words: Conditioning, geometry: Geometry | None = None) -> Tensor:
        assert geometry is not None
        assert words.pooled is not None
        assert len(noisy) == len(words.tokens) == len(words.pooled) == len(geometry.target)
        seen.append(geometry)
        return plain(noisy, t, words, geometry)

    with patch.object(model, "predict", predict):
        together = generate(model, asked, SAMPLERS["ddim"], settings, (16, 16))
    alone = [generate(model, [prompt], SAMPLERS["ddim"], settings, (16, 16))[0] for prompt in asked]
    assert max(difference(a, b) for a, b in zip(together, alone, strict=True)) <= 2
    assert {tuple(one.target[0].tolist()) for one in seen} == {(16, 16), (16, 24)}  # height and width
    assert all(torch.equal(one.original, one.target) and not one.crop.any() for one in seen)


def test_without_guidance_there_is_no_negative_half(small_sdxl: Path) -> None:
    model = Sdxl(weights=str(small_sdxl)).load(Precision.float32, torch.device("cpu"))
    settings = DrawSettings(steps=2, guidance=1.0)
    one, other = (
        generate(model, [Prompt(text="red", negative=negative)], SAMPLERS["ddim"], settings, (16, 16))[0]
        for negative in ("", "blue")
    )
    assert difference(one, other) == 0


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_every_sampler_can_begin_with_pure_noise(small_sd2: Path, sampler: Sampler) -> None:
    model = Sd2(weights=str(small_sd2), zero_terminal_snr=True).load(Precision.float32, torch.device("cpu"))
    scheduler = sampler.scheduler(model.scheduler_config())
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == 999
    assert scheduler.config.prediction_type == "v_prediction"
    with patch.object(model, "decode_latents", wraps=model.decode_latents) as decode:
        generate(model, [Prompt(text="red")], sampler, DrawSettings(steps=4), (16, 16))
    assert 0.01 < decode.call_args.args[0].std() < 100


def test_long_and_weighted_prompts_do_not_depend_on_their_company_either(small_sdxl: Path) -> None:
    model = Sdxl(weights=str(small_sdxl)).load(Precision.float32, torch.device("cpu"))
    texts = ["ball", " ".join(["ball"] * 80), "(red:1.4) ball", "red BREAK ball"]
    asked = [Prompt(text=text, seed=n, negative="tag " * 90 if n == 2 else "") for n, text in enumerate(texts)]
    settings = DrawSettings(steps=3, batch=4)
    seen: list[tuple[int, int]] = []
    plain = model.predict

    def predict(noisy: Tensor, t: Tensor, words: Conditioning, geometry: Geometry | None = None) -> Tensor:
        seen.append((len(noisy), words.tokens.shape[1]))
        return plain(noisy, t, words, geometry)

    with patch.object(model, "predict", predict):
        together = generate(model, asked, SAMPLERS["ddim"], settings, (16, 16))
    assert {length for _, length in seen} >= {77, 154}
    assert sum(count for count, _ in seen) == 3 * 2 * len(asked)
    alone = [generate(model, [prompt], SAMPLERS["ddim"], settings, (16, 16))[0] for prompt in asked]
    assert max(difference(a, b) for a, b in zip(together, alone, strict=True)) <= 2
    louder = generate(model, [Prompt(text="red ball", seed=2)], SAMPLERS["ddim"], settings, (16, 16))[0]
    assert difference(louder, together[2]) > 0


def test_where_memory_runs_out_fewer_are_drawn_at_once(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    asked = understand(model, [Prompt(text=f"ball {n}", seed=n) for n in range(7)])
    how = Drawing(sampler=SAMPLERS["ddim"], settings=DrawSettings(steps=2, batch=6), size=(16, 16), yielding=True)
    plain, seen = model.predict, list[int]()

    def predict(noisy: Tensor, *rest: Any) -> Tensor:
        seen.append(len(noisy))
        if len(noisy) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(noisy, *rest)

    whole = draw(model, asked, how)
    with patch.object(model, "predict", predict):
        sparing = draw(model, asked, how)
        tried = list(seen)
        with pytest.raises(torch.OutOfMemoryError):
            draw(model, asked, replace(how, yielding=False))
    assert [count for count in tried if count > 4] == [12, 6]  # six pictures, then three; two go, and go on
    assert max(difference(a, b) for a, b in zip(whole, sparing, strict=True)) <= 2

    def never(noisy: Tensor, *_: Any) -> Tensor:
        seen.append(len(noisy))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    seen.clear()
    with patch.object(model, "predict", never), pytest.raises(torch.OutOfMemoryError):
        draw(model, asked, how)
    assert seen == [12, 6, 2, 1]  # at last one row at a time


def test_pictures_come_one_chunk_after_the_other(small_model: Path) -> None:
    model = Sd1(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    asked = understand(model, [Prompt(text="ball", seed=n) for n in range(4)])
    how = Drawing(sampler=SAMPLERS["ddim"], settings=DrawSettings(steps=2, batch=2), size=(16, 16))
    model.denoiser.train()
    with patch.object(model, "decode_latents", wraps=model.decode_latents) as decode:
        pictures = drawn(model, asked, how)
        next(pictures)
        assert decode.call_count == 1
        pictures.close()
    assert model.denoiser.training
