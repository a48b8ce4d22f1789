"""Class pictures: what the base model draws by itself, kept so that training does not make it forget it.

Source: Ruiz et al. 2023, DreamBooth, arXiv:2208.12242, section 3.3, on prior preservation.
"""

from collections.abc import Callable, Sequence
from typing import Final

from trainer.core.files import replacing, write_atomically
from trainer.data.pairing import pair
from trainer.data.sources.folder import Generated, ImageFolder
from trainer.data.walking import walk
from trainer.families.model import DiffusionModel
from trainer.sampling.emphasis import as_letters
from trainer.sampling.generate import generate
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Ddim

_AT_ONCE: Final = 8  # pictures drawn together; what a kill can cost


def missing_pictures(folder: ImageFolder) -> list[int]:
    """The numbers of the pictures that are still to be drawn, so that the folder holds as many as it shall.

    Pictures that a person has put there count too.
    """
    if folder.generate is None:
        return []
    names: set[str] = set()
    if folder.path.is_dir():
        found = walk(folder.path, recursive=folder.recursive)
        names = {file.relative for file in pair(found, folder.caption_suffixes, masks=folder.masks == "files").pictures}
    ours = {_name(number) for number in range(folder.generate.count)}
    wanted = max(folder.generate.count - len(names - ours), 0)
    return [number for number in range(wanted) if _name(number) not in names]


def draw_missing(
    model: DiffusionModel,
    folder: ImageFolder,
    wanted: Generated,
    resolution: int,
    progress: Callable[[str, int, int], None],
) -> int:
    """Draw what is missing in a folder of class pictures, with the base model alone; each with its caption file.

    Args:
        model: without any adapter.
        folder: where they go.
        wanted: what they show; picture number n is the same whenever it is drawn.
        resolution: width and height in pixels.
        progress: told after each few pictures.

    Returns:
        How many were drawn.
    """
    numbers = missing_pictures(folder)
    settings = DrawSettings(steps=wanted.steps, guidance=wanted.guidance, batch=_AT_ONCE)
    for start in range(0, len(numbers), _AT_ONCE):
        piece = numbers[start : start + _AT_ONCE]
        _draw(model, folder, wanted, piece, resolution, settings)
        progress("drawing class pictures", start + len(piece), len(numbers))
    if numbers:
        model.release_encoders()
    return len(numbers)


def _draw(
    model: DiffusionModel,
    folder: ImageFolder,
    wanted: Generated,
    numbers: Sequence[int],
    resolution: int,
    settings: DrawSettings,
) -> None:
    words = [wanted.prompts[number % len(wanted.prompts)] for number in numbers]
    # a class picture shows what its caption says, letter by letter: brackets weigh nothing in training either
    prompts = [
        Prompt(text=as_letters(text), seed=wanted.seed + number) for text, number in zip(words, numbers, strict=True)
    ]
    pictures = generate(model, prompts, Ddim(), settings, (resolution, resolution))
    for number, text, picture in zip(numbers, words, pictures, strict=True):
        path = folder.path / _name(number)
        # The words first: a picture is never there without them.
        write_atomically(path.with_suffix(folder.caption_suffixes[0]), text + "\n")
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG")


def _name(number: int) -> str:
    return f"class-{number:05d}.png"
