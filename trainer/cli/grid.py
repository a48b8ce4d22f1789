"""trainer grid RUN|FILE: labelled sheets of pictures that differ along two or three axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

if TYPE_CHECKING:
    from trainer.gridding.axes import Axis, Cell
    from trainer.gridding.subjects import Subjects


def command(  # noqa: PLR0913 - each is a word of the command line
    source: Annotated[Path, Argument(metavar="RUN|FILE", help="A run folder, or the file of an adapter or a model.")],
    axis: Annotated[
        list[str] | None,
        Option(
            "--axis",
            "-a",
            help="What varies, given two or three times: columns, rows, sheets. prompt, seed=0..3, step=100,200,last, "
            "strength=0.6,1, guidance=3,5, sampler=DDIM,Euler a, adapter=A.safetensors,B.safetensors; seed, step, "
            "strength, guidance and sampler also without values. Otherwise checkpoints (or strengths) and prompts.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, Option("--prompt", "-p", help="May be given more than once; else the recipe's.")
    ] = None,
    prompts: Annotated[Path | None, Option(help="A file of prompts, of which the texts are taken.")] = None,
    negative: Annotated[str | None, Option(help="What the pictures do not show; else as in the recipe.")] = None,
    seed: Annotated[int | None, Option(min=0, help="The pictures' chance, where no axis is seed.")] = None,
    width: Annotated[int | None, Option(min=16, help="Pixels; otherwise as trained.")] = None,
    height: Annotated[int | None, Option(min=16, help="Pixels; otherwise as trained.")] = None,
    steps: Annotated[int | None, Option(min=1, max=1000, help="How often the network is asked.")] = None,
    guidance: Annotated[float | None, Option(min=0, max=50, help="How strongly the words pull.")] = None,
    sampler: Annotated[str | None, Option(help="DDIM, Euler a, DPM++ 2M Karras, UniPC, LCM and others.")] = None,
    strength: Annotated[float, Option(help="How strongly the adapter acts, where no axis is strength.")] = 1.0,
    batch: Annotated[int | None, Option(min=1, help="Pictures at once; fewer where memory runs out.")] = None,
    without_adapter: Annotated[bool, Option(help="Also draw without the adapter.")] = True,
    references: Annotated[bool, Option(help="A last row of pictures that the run was trained on.")] = True,
    base: Annotated[str, Option(help="The base model, where a LoRA file is drawn.")] = "bundled",
    parameters: Annotated[bool, Option(help="The single PNGs say how they were drawn.")] = True,
    out: Annotated[Path | None, Option(help="The folder for sheets, page and pictures; else RUN/grids.")] = None,
) -> None:
    """Draw labelled sheets of pictures that differ along two or three axes, as PNG and as one HTML page.

    Started again, it draws only what is missing.

    Example: trainer grid runs/blob --axis step --axis prompt --axis strength=0.6,1.0
    """
    from trainer.core.files import printable
    from trainer.core.progress import phases
    from trainer.gridding.cells import Cells
    from trainer.gridding.making import Grid, make
    from trainer.gridding.subjects import Subjects

    subjects = Subjects(source, base)
    said = _Said(negative, seed, steps, guidance, sampler, strength, batch)
    axes, usual = _axes_of(subjects, axis or (), prompt or (), prompts, said)
    resolution = subjects.resolution
    folder = out or (source / "grids" if source.is_dir() else Path("grids") / source.stem)
    cells = Cells(
        subjects=subjects,
        folder=folder / "cells",
        size=(width or resolution, height or resolution),
        parameters=parameters,
    )
    grid = Grid(title=source.resolve().stem, axes=axes, usual=usual, with_base=without_adapter and subjects.has_adapter)
    with phases() as progress:
        real = subjects.training_pictures(len(grid.sheets()[0].columns), progress) if references else []
        made = make(grid, cells, folder, real, progress)
    print(f"{made.drawn} pictures drawn, {made.kept} were there already.")
    for file in (*made.sheets, made.page):
        print(printable(str(file)))


@dataclass(frozen=True, slots=True)
class _Said:
    """What the command line says of every picture; None: as in the recipe."""

    negative: str | None
    seed: int | None
    steps: int | None
    guidance: float | None
    sampler: str | None
    strength: float
    batch: int | None


def _axes_of(
    subjects: "Subjects", words: Sequence[str], prompts: Sequence[str], file: Path | None, said: _Said
) -> "tuple[list[Axis], Cell]":
    from trainer.cli.asking import wishes_of
    from trainer.evaluation.previews import PreviewSettings
    from trainer.gridding.axes import Cell, Known, axis_of
    from trainer.sampling.prompts import Prompt
    from trainer.sampling.samplers import SAMPLERS, word_of

    previews = PreviewSettings() if subjects.recipe is None else subjects.recipe.previews
    asked = list(prompts) if prompts or file is not None else list(previews.prompts)
    texts = [wish.prompt for wish in wishes_of(asked, file)]
    usual_axes = ["step" if subjects.steps else "strength", "prompt"]
    axes = [axis_of(word, Known(prompts=texts, steps=subjects.steps)) for word in words or usual_axes]
    drawing = {"steps": said.steps, "guidance": said.guidance, "batch": said.batch}
    usual = Cell(
        prompt=Prompt(
            text=texts[0],
            negative=previews.negative if said.negative is None else said.negative,
            seed=previews.seed if said.seed is None else said.seed,
        ),
        settings=previews.draw.model_copy(update={key: value for key, value in drawing.items() if value is not None}),
        sampler=previews.sampler if said.sampler is None else SAMPLERS[word_of(said.sampler)],
        strength=said.strength,
    )
    return axes, usual
