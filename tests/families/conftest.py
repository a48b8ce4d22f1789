"""Pictures of ours beside those of diffusers' own pipelines."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.families.model import DiffusionModel
from trainer.sampling.generate import generate
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Ddim

Files = Mapping[str, Mapping[str, object]]  # a file of JSON in a model's folder -> other values in it

STEPS, GUIDANCE, WIDTH, HEIGHT, SEED = 6, 4.0, 16, 24, 5


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path, Files], Path]:
    """A copy of a model folder with other values in its files of JSON."""

    def copy(model: Path, files: Files) -> Path:
        folder = Path(shutil.copytree(model, tmp_path / "model", dirs_exist_ok=True))
        for name, changes in files.items():
            path = folder / name
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | dict(changes)), encoding="utf-8")
        return folder

    return copy


@pytest.fixture
def pipeline_of() -> Callable[..., Any]:
    """diffusers' own pipeline of a model folder, with DDIM."""

    def load(folder: Path, **scheduler: Any) -> Any:
        from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

        kind = StableDiffusionXLPipeline if (folder / "text_encoder_2").is_dir() else StableDiffusionPipeline
        more: dict[str, Any] = {} if kind is StableDiffusionXLPipeline else {"safety_checker": None}
        pipe: Any = kind.from_pretrained(folder, torch_dtype=torch.float32, **more)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **scheduler)
        pipe.set_progress_bar_config(disable=True)
        # diffusers' clip skip asks for the name that transformers 5 has dropped; no child, or it would be its own
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
        return pipe

    return load


@pytest.fixture
def drawn_alike() -> Callable[..., Tensor]:
    """Draws one prompt with our model and with a pipeline, and makes sure that the two are one picture."""

    def draw(model: DiffusionModel, pipe: Any, prompt: str, negative: str = "", /, **arguments: Any) -> Tensor:
        wanted = Prompt(text=prompt, negative=negative, seed=SEED, width=WIDTH, height=HEIGHT)
        with patch.object(model, "decode_latents", wraps=model.decode_latents) as decode:
            ours = generate(model, [wanted], Ddim(), DrawSettings(steps=STEPS, guidance=GUIDANCE), (16, 16))[0]
        latents: Tensor = decode.call_args.args[0]
        told = {"prompt": prompt, "negative_prompt": negative or None}
        told |= {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": WIDTH, "height": HEIGHT}
        theirs: dict[str, Any] = {}
        for form in ("latent", "pil"):
            chance = torch.Generator().manual_seed(SEED)
            theirs[form] = pipe(**(told | arguments), generator=chance, output_type=form).images[0]
        torch.testing.assert_close(latents[0], theirs["latent"], atol=2e-4, rtol=1e-3)
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs["pil"], dtype=int)).max() <= 2
        return latents[0].clone()

    return draw
