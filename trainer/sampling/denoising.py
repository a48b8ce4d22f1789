"""Noise, or a picture with noise, -> latents: the solver's steps, with guidance."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from trainer.batch import Conditioning, Geometry
from trainer.families.model import DiffusionModel
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Sampler
from trainer.sampling.understanding import Rows

_RESCALE: Final = 0.7  # Lin et al. 2023, arXiv:2305.08891, section 3.4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompts of one size, drawn at once."""

    prompts: Sequence[Prompt]
    words: Sequence[Rows]  # of the negatives, where there is guidance, and of the texts
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Solving:
    """How the noise goes."""

    sampler: Sampler
    settings: DrawSettings
    rows: int | None = None  # the network is asked for at most so many at once; None: for all that it can take at once


def denoise(
    model: DiffusionModel, chunk: Chunk, how: Solving, start: Tensor | None = None, strength: float = 1.0
) -> Tensor:
    """Latents [B C h w] out of noise that each prompt's own seed gives, drawn on the CPU as diffusers does.

    Args:
        model: that is asked.
        chunk: B prompts.
        how: the solver and its settings.
        start: latents [1 C h w] of a picture to begin with; None: pure noise.
        strength: how much of the way is gone anew from there, in 0 .. 1.
    """
    device = next(model.denoiser.parameters()).device
    how.sampler.check(how.settings.steps)
    scheduler = how.sampler.scheduler(model.scheduler_config())
    scheduler.set_timesteps(how.settings.steps, device=device)
    shape = (1, model.latent.channels, chunk.height // model.latent.scale, chunk.width // model.latent.scale)
    generators = [torch.Generator().manual_seed(prompt.seed) for prompt in chunk.prompts]
    latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    timesteps = scheduler.timesteps
    if start is None:
        latents = latents * scheduler.init_noise_sigma
    else:
        timesteps = _remaining(scheduler, how.settings.steps, strength)
        latents = scheduler.add_noise(start.to(device), latents, timesteps[:1].expand(len(latents)))
    rescale = how.settings.rescale
    if rescale is None:
        rescale = _RESCALE if model.zero_terminal_snr else 0.0
    extra = _extra_arguments(scheduler, generators)
    for t in timesteps:
        noisy = scheduler.scale_model_input(latents, t)
        predicted = guided(_asked(model, noisy, t, chunk, how.rows), len(noisy), how.settings.guidance, rescale)
        latents = scheduler.step(predicted, t, latents, **extra, return_dict=False)[0]
    return latents


def guided(predicted: Tensor, count: int, guidance: float, rescale: float) -> Tensor:
    """The prediction [B C h w] with classifier-free guidance (arXiv:2207.12598, equation 6).

    Args:
        predicted: [B C h w] of the texts, or [2B C h w] of the negatives and then of the texts.
        count: B.
        guidance: how strongly the words pull.
        rescale: how far the spread of each picture is brought back to that of the texts' own prediction, in 0 .. 1
            (arXiv:2305.08891, equations 15 and 16): strong guidance makes pictures glaring where they begin with pure
            noise.
    """
    if len(predicted) == count:
        return predicted
    without, with_words = predicted.chunk(2)
    pulled = without + guidance * (with_words - without)
    if not rescale:
        return pulled
    spread = with_words.std(dim=(1, 2, 3), keepdim=True) / pulled.std(dim=(1, 2, 3), keepdim=True)
    return pulled * (rescale * spread + 1 - rescale)


def _asked(model: DiffusionModel, noisy: Tensor, t: Tensor, chunk: Chunk, most: int | None) -> Tensor:
    """What the network predicts for each row of words, as few rows at once as `most` says."""
    count = sum(len(group.places) for group in chunk.words)
    inputs = noisy.repeat(count // len(noisy), 1, 1, 1)
    places: list[int] = []
    answers: list[Tensor] = []
    for group in chunk.words:
        at_once = most or count
        words = [group.words] if at_once >= len(group.places) else _split(group.words, at_once)
        for number, part in enumerate(words):
            rows = group.places[number * at_once : number * at_once + len(part.tokens)]
            of_rows = inputs if len(rows) == count else inputs[list(rows)]
            whole = Geometry.whole(len(rows), chunk.height, chunk.width, noisy.device)
            answers.append(model.predict(of_rows, t.expand(len(rows)), part, whole).to(noisy.dtype))
        places += group.places
    predicted = torch.cat(answers)
    if len(chunk.words) == 1:
        return predicted
    return predicted[torch.tensor(places, device=predicted.device).argsort()]


def _split(words: Conditioning, at_once: int) -> list[Conditioning]:
    rows = words.rows()
    return [Conditioning.joined(rows[start : start + at_once]) for start in range(0, len(rows), at_once)]


def _remaining(scheduler: Any, steps: int, strength: float) -> Tensor:
    """The timesteps of the last part of the way, as diffusers counts them; at least one step."""
    done = (steps - max(1, min(int(steps * strength), steps))) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):  # diffusers asks so too: solvers without a memory have it not
        scheduler.set_begin_index(done)
    return scheduler.timesteps[done:]


def _extra_arguments(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """Solvers that add noise take each picture's own generator; the others know no such argument."""
    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
