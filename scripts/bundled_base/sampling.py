"""Pictures from prompts, through the real pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw

LABEL_HEIGHT = 12
GRID_PROMPTS = (
    "red apple, noto style",
    "cat face, flat style",
    "fox, noto style",
    "red heart, 3d style",
    "rocket, 3d style",
    "automobile, flat style",
    "bicycle, noto style",
    "house, flat style",
    "evergreen tree, noto style",
    "mushroom, 3d style",
    "grinning face, noto style",
    "robot, 3d style",
    "guitar, 3d style",
    "a purple cat, 3d style",
    "green pizza, noto style",
    "person with long red hair, happy, blue shirt, pixel art",
)


@dataclass(frozen=True)
class SamplingPlan:
    """How pictures are drawn from the base."""

    steps: int = 20
    guidance: float = 4.0
    seed: int = 0
    batch_size: int = 20


def sample_pictures(pipeline: StableDiffusionPipeline, prompts: Sequence[str], plan: SamplingPlan) -> list[Image.Image]:
    """Return one picture per prompt by DPM-Solver++; each has its own seed, so batching does not move them."""
    pipeline.set_progress_bar_config(disable=True)
    kept = pipeline.scheduler
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(kept.config)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), plan.batch_size):
        chunk = list(prompts[start : start + plan.batch_size])
        seeds = [plan.seed * 100003 + start + offset for offset in range(len(chunk))]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = pipeline(
            chunk,
            num_inference_steps=plan.steps,
            guidance_scale=plan.guidance,
            generator=generators,
            return_dict=False,
        )
        pictures += drawn[0]
    pipeline.scheduler = kept
    return pictures


def picture_grid(pictures: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None) -> Image.Image:
    """Return the pictures in rows, each under its label where labels are given."""
    size = pictures[0].width
    height = size + (LABEL_HEIGHT if labels else 0)
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * size, rows * height), "white")
    drawing = ImageDraw.Draw(grid)
    for index, picture in enumerate(pictures):
        left, top = (index % columns) * size, (index // columns) * height
        grid.paste(picture, (left, top + height - size))
        if labels:
            drawing.text((left + 2, top), labels[index][: size // 6], fill="black")
    return grid
