"""trainer sample RECIPE|RUN|WEIGHTS: draw prompts with or without an adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

if TYPE_CHECKING:
    from PIL import Image

    from trainer.drawing import Drawable
    from trainer.sampling.asked import Asked
    from trainer.sampling.enlarging import Enlarger
    from trainer.sampling.image_to_image import Start
    from trainer.sampling.restoring import FaceRestorer

_IN_MEMORY = 64  # pictures; the sheet of more is put together row by row


def command(  # noqa: PLR0913 - each is a word of the command line
    source: Annotated[Path, Argument(metavar="RECIPE|RUN|FILE", help="A recipe, a run folder, or a LoRA file.")],
    prompt: Annotated[
        list[str] | None,
        Option("--prompt", "-p", help="What to draw; may be given more than once. (word:1.2), [word] and BREAK weigh."),
    ] = None,
    prompts: Annotated[
        Path | None, Option(help="A file of prompts: lines with --n --w --h --d --l --s --ss, or YAML.")
    ] = None,
    wildcards: Annotated[Path | None, Option(help="The folder of text files for __name__ in prompts.")] = None,
    negative: Annotated[str, Option(help="What the pictures do not show.")] = "",
    seed: Annotated[int, Option(min=0, help="The first picture's chance; each further one counts up.")] = 0,
    count: Annotated[int, Option(min=1, help="Pictures a prompt.")] = 1,
    size: Annotated[int | None, Option(min=16, help="Pixels, width and height; otherwise as trained.")] = None,
    width: Annotated[int | None, Option(min=16, help="Pixels, where the picture is no square.")] = None,
    height: Annotated[int | None, Option(min=16, help="Pixels, where the picture is no square.")] = None,
    steps: Annotated[int, Option(min=1, max=1000, help="How often the network is asked.")] = 20,
    guidance: Annotated[float, Option(min=0, max=50, help="How strongly the words pull.")] = 4.0,
    sampler: Annotated[str, Option(help="DDIM, Euler a, DPM++ 2M Karras, UniPC, LCM and others.")] = "DDIM",
    strength: Annotated[float, Option(help="How strongly the adapter acts; 0 is the base alone.")] = 1.0,
    image: Annotated[Path | None, Option(help="A picture to begin with, instead of noise.")] = None,
    denoising: Annotated[
        float, Option(min=0.01, max=1, help="How much of that picture is drawn anew; 1 is nearly all.")
    ] = 0.6,
    upscale: Annotated[
        Path | None, Option(help="A network that enlarges the pictures: a .safetensors file of the ESRGAN kind.")
    ] = None,
    faces: Annotated[
        Path | None, Option(help="A network that restores faces: a .safetensors file of GFPGAN or RestoreFormer.")
    ] = None,
    batch: Annotated[int, Option(min=1, help="Pictures at once; fewer where memory runs out.")] = 8,
    base: Annotated[str, Option(help="The base model, where a LoRA file is drawn.")] = "bundled",
    parameters: Annotated[bool, Option(help="The PNGs say how they were drawn, as web UIs read it.")] = True,
    out: Annotated[Path, Option(help="The folder for the pictures and their sheet.")] = Path("samples"),
) -> None:
    """Draw prompts with or without an adapter.

    Example: trainer sample runs/blob --prompt "blobby, (winking:1.2) face" --count 4 --sampler "Euler a"
    """
    from trainer.cli.asking import Usual, asked_of, wishes_of
    from trainer.core.device import pick_device
    from trainer.drawing import open_drawable
    from trainer.sampling.enlarging import Enlarger
    from trainer.sampling.prompts import DrawSettings
    from trainer.sampling.restoring import FaceRestorer
    from trainer.sampling.samplers import SAMPLERS, word_of
    from trainer.sampling.wildcards import Wildcards

    solver, wishes, choices = SAMPLERS[word_of(sampler)], wishes_of(prompt or (), prompts), Wildcards(wildcards)
    settings = DrawSettings(steps=steps, guidance=guidance, batch=batch)
    start = None if image is None else _start_of(image, denoising)
    enlarger = None if upscale is None else Enlarger(upscale.expanduser(), pick_device())
    restorer = None if faces is None else FaceRestorer(faces.expanduser(), pick_device())
    drawable = open_drawable(source, base)
    drawable.set_strength(strength)
    side = size or drawable.resolution
    usual_size = (side, side) if start is None or size else start.size(side, drawable.model.latent.step)
    usual = Usual(
        negative=negative,
        seed=seed,
        size=(width or usual_size[0], height or usual_size[1]),
        settings=settings,
        sampler=solver,
    )
    asked = [asked_of(wish, usual, number, choices) for number in range(count) for wish in wishes]
    _draw(drawable, asked, _After(start, enlarger, restorer, strength), out, parameters=parameters)
    _write_sheet(out, asked, [wish.prompt for wish in wishes])
    print(f"{len(asked)} pictures and grid.png in {out}" + ("" if restorer is None else f". {restorer.told()}"))


def _start_of(image: Path, denoising: float) -> "Start":
    from trainer.data.decoding import ImageLimits, open_image
    from trainer.sampling.image_to_image import Start

    return Start(open_image(image.expanduser(), ImageLimits()), denoising)


@dataclass(frozen=True, slots=True)
class _After:
    """What is done besides drawing from noise."""

    start: "Start | None"  # a picture to begin with
    enlarger: "Enlarger | None"
    restorer: "FaceRestorer | None"
    strength: float  # of the adapter

    def bettered(self, picture: "Image.Image") -> "Image.Image":
        """The picture enlarged, and then with its faces restored, where that is asked for."""
        larger = picture if self.enlarger is None else self.enlarger.enlarged(picture)
        return larger if self.restorer is None else self.restorer.restored(larger)


def _draw(drawable: "Drawable", asked: "Sequence[Asked]", after: _After, out: Path, *, parameters: bool) -> None:
    """Each picture is written as soon as it is there."""
    from trainer.core.progress import phases
    from trainer.drawing.origins import origin_of
    from trainer.evaluation.previews import picture_name
    from trainer.sampling.asked import drawn_as_asked
    from trainer.sampling.parameters import Drawn, parameters_of, save_png

    origin, start, done = origin_of(drawable, after.strength), after.start, 0
    with phases() as progress:

        def tell(new: int) -> None:
            nonlocal done
            done += new
            progress("drawing", done, len(asked))

        for place, picture in drawn_as_asked(drawable.model, asked, start, tell):
            one = asked[place]
            how = Drawn(
                prompt=one.prompt,
                settings=one.settings,
                sampler=one.sampler,
                origin=origin,
                denoising=None if start is None else start.strength,
            )
            told = parameters_of(how, picture.size) if parameters else ""
            save_png(out / picture_name(place), after.bettered(picture), told)


def _write_sheet(out: Path, asked: "Sequence[Asked]", prompts: "Sequence[str]") -> None:
    """One row a seed, one column a prompt."""
    from PIL import Image

    from trainer.evaluation.previews import picture_name
    from trainer.gridding.sheet import Row, write_sheet
    from trainer.sampling.grid import grid
    from trainer.sampling.parameters import save_png

    def row_at(first: int) -> "list[Image.Image]":
        return [Image.open(out / picture_name(place)).convert("RGB") for place in range(first, first + len(prompts))]

    firsts = range(0, len(asked), len(prompts))
    labels = [
        f"seed {asked[first].prompt.seed}"
        if len({one.prompt.seed for one in asked[first : first + len(prompts)]}) == 1
        else f"picture {first // len(prompts) + 1} of each"
        for first in firsts
    ]
    if len(asked) <= _IN_MEMORY:
        save_png(out / "grid.png", grid([row_at(first) for first in firsts], labels, prompts))
        return
    rows = [
        Row(label=label, pictures=lambda first=first: row_at(first))
        for label, first in zip(labels, firsts, strict=True)
    ]
    sizes = [(one.prompt.width or 0, one.prompt.height or 0) for one in asked]  # enlarged ones are fitted into these
    write_sheet(out / "grid.png", "", prompts, rows, (max(w for w, _ in sizes), max(h for _, h in sizes)))
