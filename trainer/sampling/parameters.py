"""The text in a PNG by which other programs and model sites show how it was drawn."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer import __version__
from trainer.core.files import replacing
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Sampler, title_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which weights drew a picture, as far as others can find them; names only, no folders."""

    model: str = ""  # the base
    adapter: str = ""
    strength: float = 1.0
    adapter_hash: str = ""  # SHA-256 of all that follows the file's header; "" where it is no file
    clip_skip: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """How one picture was drawn."""

    prompt: Prompt
    settings: DrawSettings
    sampler: Sampler
    origin: Origin
    denoising: float | None = None  # strength of image-to-image


def parameters_of(drawn: Drawn, size: tuple[int, int]) -> str:
    """The text as A1111 writes it into the PNG's `parameters`, and reads it back.

    The adapter is named in the prompt, `<lora:NAME:0.8>`, where it is a file that such a program could have. Its hash
    is the first 12 digits of `sshs_model_hash`, by which model sites find it.
    """
    prompt, origin = drawn.prompt, drawn.origin
    acts = bool(origin.adapter) and origin.strength != 0
    named = acts and bool(origin.adapter_hash)
    text = f"{prompt.text} <lora:{origin.adapter}:{origin.strength:g}>".lstrip() if named else prompt.text
    facts: Mapping[str, object] = {
        "Steps": drawn.settings.steps,
        "Sampler": title_of(drawn.sampler),
        "CFG scale": f"{drawn.settings.guidance:g}",
        "Seed": prompt.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": origin.model,
        "Denoising strength": "" if drawn.denoising is None else f"{drawn.denoising:g}",
        "Clip skip": origin.clip_skip if origin.clip_skip > 1 else "",
        "RNG": "CPU",
        "Adapter": f"{origin.adapter} at {origin.strength:g}" if acts and not named else "",
        "Lora hashes": f"{origin.adapter}: {origin.adapter_hash[:12]}" if named else "",
        "Version": f"sd-trainer {__version__}",
    }
    last = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in facts.items() if value != "")
    negative = [f"Negative prompt: {prompt.negative}"] if prompt.negative else []
    return "\n".join([text, *negative, last])


def save_png(path: Path, picture: Image.Image, parameters: str = "") -> None:
    """Write a PNG whole or not at all; with no text inside but `parameters`, where there are any."""
    info = PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def _quoted(value: str) -> str:
    """A value that holds what parts values is quoted as JSON, as A1111 does."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value
