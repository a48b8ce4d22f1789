"""Prompts -> pictures with one model."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from trainer.batch import Conditioning, Geometry
from trainer.families.model import DiffusionModel
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Sampler

_PIXELS_AT_ONCE: Final = 512 * 512  # decoded at once: the decoder takes far more memory a pixel than the denoiser


@dataclass(frozen=True, slots=True)
class _Texts:
    """What texts mean, each encoded once, [1 T D]."""

    wanted: Mapping[str, Conditioning]
    unwanted: Mapping[str, Conditioning]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Prompts of one size, drawn at once."""

    prompts: Sequence[Prompt]
    width: int
    height: int


def generate(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    settings: DrawSettings,
    size: tuple[int, int],
    progress: Callable[[int], None] = lambda _: None,
) -> list[Image.Image]:
    """One picture a prompt, in their order; the same seed gives the same picture in any company.

    The denoiser is asked in evaluation mode and put back as it was, and torch's global generator is not touched, so
    drawing in the middle of a run does not change the run.

    Args:
        model: draws with whatever adapter is attached, at its present strength.
        prompts: what to draw.
        sampler: the solver.
        settings: steps, guidance, pictures at once.
        size: width and height in pixels where a prompt says none; both rounded up to what the networks take.
        progress: told after each chunk how many pictures are new.
    """
    words = _Texts(
        wanted=_encoded(model.encode_words, (prompt.text for prompt in prompts)),
        unwanted=_encoded(model.encode_negatives, (prompt.negative for prompt in prompts)),
    )
    was_training = model.denoiser.training
    model.denoiser.eval()
    pictures: dict[int, Image.Image] = {}
    try:
        with torch.inference_mode():
            for places in _chunks(prompts, size, settings.batch):
                chunk = _chunk([prompts[place] for place in places], size, model.latent.step)
                latents = _denoise(model, chunk, words, sampler, settings)
                drawn = _as_pictures(_decoded(model, latents))
                pictures.update(zip(places, drawn, strict=True))
                progress(len(places))
    finally:
        model.denoiser.train(was_training)
    return [pictures[place] for place in range(len(prompts))]


def _encoded(encode: Callable[[Sequence[str]], Conditioning], texts: Iterable[str]) -> dict[str, Conditioning]:
    distinct = sorted(set(texts))
    states: dict[str, Conditioning] = {}
    for start in range(0, len(distinct), 32):
        part = distinct[start : start + 32]
        states.update(zip(part, encode(part).rows(), strict=True))
    return states


def _chunks(prompts: Sequence[Prompt], size: tuple[int, int], batch: int) -> Iterator[list[int]]:
    """Places of prompts that can be drawn together: same size, at most `batch`."""

    def wanted(place: int) -> tuple[int, int]:
        return prompts[place].width or size[0], prompts[place].height or size[1]

    for _, group in itertools.groupby(sorted(range(len(prompts)), key=wanted), key=wanted):
        places = list(group)
        yield from (places[start : start + batch] for start in range(0, len(places), batch))


def _chunk(prompts: Sequence[Prompt], size: tuple[int, int], step: int) -> _Chunk:
    width, height = prompts[0].width or size[0], prompts[0].height or size[1]
    return _Chunk(prompts, -(-width // step) * step, -(-height // step) * step)


def _denoise(model: DiffusionModel, chunk: _Chunk, words: _Texts, sampler: Sampler, settings: DrawSettings) -> Tensor:
    """Latents [B C h w] out of noise that each prompt's own seed gives, drawn on the CPU as diffusers does."""
    scheduler = sampler.scheduler(model.scheduler_config())
    device = words.wanted[chunk.prompts[0].text].tokens.device
    scheduler.set_timesteps(settings.steps, device=device)
    shape = (1, model.latent.channels, chunk.height // model.latent.scale, chunk.width // model.latent.scale)
    generators = [torch.Generator().manual_seed(prompt.seed) for prompt in chunk.prompts]
    latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    latents = latents * scheduler.init_noise_sigma
    extra = _extra_arguments(scheduler, generators)
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, t)
        predicted = _guided(model, noisy, t, chunk, words, settings.guidance)
        latents = scheduler.step(predicted, t, latents, **extra, return_dict=False)[0]
    return latents


def _guided(model: DiffusionModel, noisy: Tensor, t: Tensor, chunk: _Chunk, words: _Texts, guidance: float) -> Tensor:
    """The prediction with classifier-free guidance (arXiv:2207.12598, equation 6), both halves in one pass."""
    positive = [words.wanted[prompt.text] for prompt in chunk.prompts]
    negative = [words.unwanted[prompt.negative] for prompt in chunk.prompts] if guidance > 1 else []
    both = Conditioning.joined([*negative, *positive])
    whole = Geometry.whole(len(negative) + len(positive), chunk.height, chunk.width, noisy.device)
    inputs = torch.cat([noisy, noisy]) if negative else noisy
    predicted = model.predict(inputs, t.expand(len(inputs)), both, whole).to(noisy.dtype)
    if not negative:
        return predicted
    without, with_words = predicted.chunk(2)
    return without + guidance * (with_words - without)


def _decoded(model: DiffusionModel, latents: Tensor) -> Tensor:
    """Pixels [B 3 H W] of latents [B C h w], as many at once as memory is planned for."""
    pixels = latents.shape[-2] * latents.shape[-1] * model.latent.scale**2
    pieces = latents.split(max(1, _PIXELS_AT_ONCE // pixels))
    return torch.cat([model.decode_latents(piece).cpu() for piece in pieces])


def _extra_arguments(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """Solvers that add noise take each picture's own generator; the others know no such argument."""
    import inspect

    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}


def _as_pictures(pixels: Tensor) -> list[Image.Image]:
    """[B 3 H W] in -1 .. 1 -> 8-bit RGB, rounded as diffusers rounds."""
    levels = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().float().mul(255).round().to(torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in levels]
