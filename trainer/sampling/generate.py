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
class Understood:
    """Prompts with what their texts mean, each text encoded once and kept on the CPU, [1 T D]."""

    prompts: Sequence[Prompt]
    wanted: Mapping[str, Conditioning]
    unwanted: Mapping[str, Conditioning]

    def conditioning(self, prompts: Sequence[Prompt], device: torch.device, *, guided: bool) -> Conditioning:
        """Of the negatives of `prompts`, where there is guidance, and then of their texts."""
        positive = [self.wanted[prompt.text] for prompt in prompts]
        negative = [self.unwanted[prompt.negative] for prompt in prompts] if guided else []
        return Conditioning.joined([*negative, *positive]).to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How pictures are drawn, and what memory that may take."""

    sampler: Sampler
    settings: DrawSettings
    size: tuple[int, int]  # pixels, width and height where a prompt says none; rounded up to what the networks take
    rows: int | None = None  # the network is asked for at most so many at once; None: for all, twice with guidance
    decoding: int | None = None  # bytes that decoding may take, with the autoencoder; None: what is quickest


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Prompts of one size, drawn at once."""

    prompts: Sequence[Prompt]
    words: Conditioning  # of the negatives, where there is guidance, and of the texts
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
    return draw(model, understand(model, prompts), Drawing(sampler=sampler, settings=settings, size=size), progress)


def understand(model: DiffusionModel, prompts: Sequence[Prompt]) -> Understood:
    """What the texts of prompts mean to the model as it is now."""
    return Understood(
        prompts=prompts,
        wanted=_encoded(model.encode_words, (prompt.text for prompt in prompts)),
        unwanted=_encoded(model.encode_negatives, (prompt.negative for prompt in prompts)),
    )


def draw(
    model: DiffusionModel, asked: Understood, how: Drawing, progress: Callable[[int], None] = lambda _: None
) -> list[Image.Image]:
    """The same as `generate`, of prompts that are understood already: text encoders are not needed."""
    prompts, settings, denoiser = asked.prompts, how.settings, model.denoiser
    device = next(denoiser.parameters()).device
    was_training = denoiser.training
    denoiser.eval()
    pictures: dict[int, Image.Image] = {}
    try:
        with torch.inference_mode():
            for places in _chunks(prompts, how.size, settings.batch):
                together = [prompts[place] for place in places]
                words = asked.conditioning(together, device, guided=settings.guidance > 1)
                chunk = _chunk(together, words, how.size, model.latent.step)
                drawn = _as_pictures(_decoded(model, _denoise(model, chunk, how), how.decoding))
                pictures.update(zip(places, drawn, strict=True))
                progress(len(places))
    finally:
        denoiser.train(was_training)
    return [pictures[place] for place in range(len(prompts))]


def _encoded(encode: Callable[[Sequence[str]], Conditioning], texts: Iterable[str]) -> dict[str, Conditioning]:
    distinct = sorted(set(texts))
    states: dict[str, Conditioning] = {}
    for start in range(0, len(distinct), 32):
        part = distinct[start : start + 32]
        states.update(zip(part, encode(part).to(torch.device("cpu")).rows(), strict=True))
    return states


def _chunks(prompts: Sequence[Prompt], size: tuple[int, int], batch: int) -> Iterator[list[int]]:
    """Places of prompts that can be drawn together: same size, at most `batch`."""

    def wanted(place: int) -> tuple[int, int]:
        return prompts[place].width or size[0], prompts[place].height or size[1]

    for _, group in itertools.groupby(sorted(range(len(prompts)), key=wanted), key=wanted):
        places = list(group)
        yield from (places[start : start + batch] for start in range(0, len(places), batch))


def _chunk(prompts: Sequence[Prompt], words: Conditioning, size: tuple[int, int], step: int) -> _Chunk:
    width, height = prompts[0].width or size[0], prompts[0].height or size[1]
    return _Chunk(prompts, words, -(-width // step) * step, -(-height // step) * step)


def _denoise(model: DiffusionModel, chunk: _Chunk, how: Drawing) -> Tensor:
    """Latents [B C h w] out of noise that each prompt's own seed gives, drawn on the CPU as diffusers does."""
    scheduler = how.sampler.scheduler(model.scheduler_config())
    device = chunk.words.tokens.device
    scheduler.set_timesteps(how.settings.steps, device=device)
    shape = (1, model.latent.channels, chunk.height // model.latent.scale, chunk.width // model.latent.scale)
    generators = [torch.Generator().manual_seed(prompt.seed) for prompt in chunk.prompts]
    latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    latents = latents * scheduler.init_noise_sigma
    extra = _extra_arguments(scheduler, generators)
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, t)
        predicted = _guided(model, noisy, t, chunk, how)
        latents = scheduler.step(predicted, t, latents, **extra, return_dict=False)[0]
    return latents


def _guided(model: DiffusionModel, noisy: Tensor, t: Tensor, chunk: _Chunk, how: Drawing) -> Tensor:
    """The prediction with classifier-free guidance (arXiv:2207.12598, equation 6), both halves in one pass."""
    count = len(chunk.words.tokens)
    inputs = noisy.repeat(count // len(noisy), 1, 1, 1)
    at_once = how.rows or count
    answers: list[Tensor] = []
    for start in range(0, count, at_once):
        part = inputs[start : start + at_once]
        words = chunk.words if at_once >= count else Conditioning.joined(chunk.words.rows()[start : start + at_once])
        whole = Geometry.whole(len(part), chunk.height, chunk.width, noisy.device)
        answers.append(model.predict(part, t.expand(len(part)), words, whole).to(noisy.dtype))
    predicted = torch.cat(answers)
    if count == len(noisy):
        return predicted
    without, with_words = predicted.chunk(2)
    return without + how.settings.guidance * (with_words - without)


def _decoded(model: DiffusionModel, latents: Tensor, most: int | None) -> Tensor:
    """Pixels [B 3 H W] of latents [B C h w], as many at once as memory is planned for."""
    pixels = latents.shape[-2] * latents.shape[-1] * model.latent.scale**2
    pieces = latents.split(max(1, _PIXELS_AT_ONCE // pixels) if most is None else 1)
    return torch.cat([model.decode_latents(piece, most).cpu() for piece in pieces])


def _extra_arguments(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """Solvers that add noise take each picture's own generator; the others know no such argument."""
    import inspect

    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}


def _as_pictures(pixels: Tensor) -> list[Image.Image]:
    """[B 3 H W] in -1 .. 1 -> 8-bit RGB, rounded as diffusers rounds."""
    levels = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().float().mul(255).round().to(torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in levels]
