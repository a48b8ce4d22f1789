"""Prompts -> pictures with one model."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from trainer.core.log import logger
from trainer.core.memory import give_back, ran_out
from trainer.core.shards import is_shared
from trainer.families.model import DiffusionModel
from trainer.sampling.denoising import Chunk, Solving, denoise
from trainer.sampling.image_to_image import Start
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Sampler
from trainer.sampling.understanding import Understood, understand

_PIXELS_AT_ONCE: Final = 512 * 512  # decoded at once: the decoder takes far more memory a pixel than the denoiser


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How pictures are drawn, and what memory that may take."""

    sampler: Sampler
    settings: DrawSettings
    size: tuple[int, int]  # pixels, width and height where a prompt says none; rounded up to what the networks take
    rows: int | None = None  # the network is asked for at most so many at once; None: for all, twice with guidance
    decoding: int | None = None  # bytes that decoding may take, with the autoencoder; None: what is quickest
    start: Start | None = None  # a picture to begin with; None: pure noise
    yielding: bool = False  # where memory runs out, fewer pictures are drawn at once, instead of none


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


def draw(
    model: DiffusionModel, asked: Understood, how: Drawing, progress: Callable[[int], None] = lambda _: None
) -> list[Image.Image]:
    """The same as `generate`, of prompts that are understood already: text encoders are not needed."""
    pictures: dict[int, Image.Image] = {}
    for place, picture in drawn(model, asked, how, progress):
        pictures[place] = picture
    return [pictures[place] for place in range(len(asked.prompts))]


def drawn(
    model: DiffusionModel, asked: Understood, how: Drawing, progress: Callable[[int], None] = lambda _: None
) -> Generator[tuple[int, Image.Image], None, None]:
    """The same, each picture with its prompt's place as soon as it is there: no more are kept than are drawn at once.

    Raises:
        RuntimeError, MemoryError: memory ran out; with `how.yielding`, for a single picture at its most sparing.
    """
    denoiser = model.denoiser
    was_training = denoiser.training
    waiting = deque(_chunks(asked.prompts, how.size, how.settings.batch))
    denoiser.eval()
    try:
        while waiting:
            places = waiting.popleft()
            at_once = how.settings.batch
            if len(places) > at_once:
                waiting.appendleft(places[at_once:])
                places = places[:at_once]
            pictures = _tried(model, asked, places, how)
            if pictures is None:
                how = _sparing(how, len(places))
                waiting.appendleft(places)
                continue
            yield from zip(places, pictures, strict=True)
            progress(len(places))
    finally:
        denoiser.train(was_training)


def _tried(model: DiffusionModel, asked: Understood, places: Sequence[int], how: Drawing) -> list[Image.Image] | None:
    """The pictures of some prompts; None where there is not enough memory, and less could do."""
    try:
        # what shards put together in inference mode could not be trained afterwards
        with torch.no_grad() if is_shared(next(model.denoiser.parameters())) else torch.inference_mode():
            return _together(model, asked, [asked.prompts[place] for place in places], how)
    except (MemoryError, RuntimeError) as error:
        least = len(places) == 1 and how.rows == 1 and how.decoding == 0
        if not how.yielding or least or not ran_out(error):
            raise
    give_back(next(model.denoiser.parameters()).device)  # outside: the error holds what was in memory
    return None


def _sparing(how: Drawing, count: int) -> Drawing:
    """What to try after memory ran out with `count` pictures at once."""
    if count == 1:
        logger.warning("Memory ran out; pictures are drawn in the way that takes the least of it.")
        return replace(how, rows=1, decoding=0)
    logger.warning("Memory ran out with %d pictures at once; going on with %d.", count, count // 2)
    return replace(how, settings=how.settings.model_copy(update={"batch": count // 2}))


def _together(model: DiffusionModel, asked: Understood, prompts: Sequence[Prompt], how: Drawing) -> list[Image.Image]:
    device = next(model.denoiser.parameters()).device
    words = asked.rows(prompts, device, guided=how.settings.guidance > 1)
    step = model.latent.step
    width, height = (-(-side // step) * step for side in _size(prompts[0], how.size))
    solving = Solving(sampler=how.sampler, settings=how.settings, rows=how.rows)
    start = None if how.start is None else how.start.latents(model, width, height)
    strength = 1.0 if how.start is None else how.start.strength
    latents = denoise(model, Chunk(prompts, words, width, height), solving, start, strength)
    return as_pictures(_decoded(model, latents, how.decoding))


def _chunks(prompts: Sequence[Prompt], size: tuple[int, int], batch: int) -> Iterator[list[int]]:
    """Places of prompts that can be drawn together: same size, at most `batch`."""

    def wanted(place: int) -> tuple[int, int]:
        return _size(prompts[place], size)

    for _, group in itertools.groupby(sorted(range(len(prompts)), key=wanted), key=wanted):
        places = list(group)
        yield from (places[start : start + batch] for start in range(0, len(places), batch))


def _size(prompt: Prompt, size: tuple[int, int]) -> tuple[int, int]:
    return prompt.width or size[0], prompt.height or size[1]


def _decoded(model: DiffusionModel, latents: Tensor, most: int | None) -> Tensor:
    """Pixels [B 3 H W] of latents [B C h w], as many at once as memory is planned for."""
    pixels = latents.shape[-2] * latents.shape[-1] * model.latent.scale**2
    pieces = latents.split(max(1, _PIXELS_AT_ONCE // pixels) if most is None else 1)
    return torch.cat([model.decode_latents(piece, most).cpu() for piece in pieces])


def as_pictures(pixels: Tensor) -> list[Image.Image]:
    """[B 3 H W] in -1 .. 1 -> 8-bit RGB, rounded as diffusers rounds."""
    levels = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().float().mul(255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.numpy()]
