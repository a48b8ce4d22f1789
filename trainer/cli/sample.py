"""trainer sample RECIPE|RUN|WEIGHTS: draw prompts with or without an adapter."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def command(  # noqa: PLR0913 - each is a word of the command line
    source: Annotated[Path, Argument(metavar="RECIPE|RUN|FILE", help="A recipe, a run folder, or a LoRA file.")],
    prompt: Annotated[list[str], Option("--prompt", "-p", help="What to draw; may be given more than once.")],
    negative: Annotated[str, Option(help="What the pictures do not show.")] = "",
    seed: Annotated[int, Option(min=0, help="The first picture's chance; each further one counts up.")] = 0,
    count: Annotated[int, Option(min=1, help="Pictures a prompt.")] = 1,
    size: Annotated[int | None, Option(min=16, help="Pixels, width and height; otherwise as trained.")] = None,
    steps: Annotated[int, Option(min=1, max=1000, help="How often the network is asked.")] = 20,
    guidance: Annotated[float, Option(min=0, max=50, help="How strongly the words pull.")] = 4.0,
    sampler: Annotated[str, Option(help="ddim, dpm++_2m, dpm++_2m_karras, unipc or euler_a.")] = "ddim",
    strength: Annotated[float, Option(help="How strongly the adapter acts; 0 is the base alone.")] = 1.0,
    base: Annotated[str, Option(help="The base model, where a LoRA file is drawn.")] = "bundled",
    out: Annotated[Path, Option(help="The folder for the pictures and their sheet.")] = Path("samples"),
) -> None:
    """Draw prompts with or without an adapter.

    Example: trainer sample runs/blob --prompt "blobby, winking face" --count 4
    """
    from trainer.core.errors import RecipeError
    from trainer.drawing import open_for_drawing
    from trainer.evaluation.previews import picture_name, save_png
    from trainer.sampling.generate import generate
    from trainer.sampling.grid import grid
    from trainer.sampling.prompts import DrawSettings, Prompt
    from trainer.sampling.samplers import SAMPLERS

    if sampler not in SAMPLERS:
        raise RecipeError(
            f"There is no sampler called {sampler!r}.", where="--sampler", mend=f"Choose among: {', '.join(SAMPLERS)}."
        )
    model, resolution = open_for_drawing(source, base, strength)
    side = size or resolution
    asked = [Prompt(text=text, negative=negative, seed=seed + n) for n in range(count) for text in prompt]
    pictures = generate(model, asked, SAMPLERS[sampler], DrawSettings(steps=steps, guidance=guidance), (side, side))
    for place, picture in enumerate(pictures):
        save_png(out / picture_name(place), picture)
    rows = [pictures[start : start + len(prompt)] for start in range(0, len(pictures), len(prompt))]
    save_png(out / "grid.png", grid(rows, [f"seed {seed + n}" for n in range(count)], prompt))
    print(f"{len(pictures)} pictures and grid.png in {out}")
