"""What a person asks to be drawn, by options and by files of prompts -> prompts with their settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.sampling.asked import Asked
    from trainer.sampling.prompt_files import Wish
    from trainer.sampling.prompts import DrawSettings
    from trainer.sampling.samplers import Sampler
    from trainer.sampling.wildcards import Wildcards

_LARGEST = 16 << 20  # bytes of a file of prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """What holds where a wish says nothing."""

    negative: str
    seed: int
    size: tuple[int, int]
    settings: "DrawSettings"
    sampler: "Sampler"


def wishes_of(prompts: Sequence[str], file: Path | None) -> "list[Wish]":
    """The wishes of the command line, and then those of a file of prompts.

    Raises:
        RecipeError: there are none, or the file cannot be read.
    """
    from trainer.core.errors import RecipeError
    from trainer.sampling.prompt_files import Wish

    wishes = [Wish(prompt=text) for text in prompts]
    wishes += [] if file is None else _of_file(file)
    if not wishes:
        raise RecipeError(
            "Nothing to draw is named.",
            where="--prompt",
            mend='Give --prompt "...", or a file of prompts with --prompts.',
        )
    return wishes


def asked_of(wish: "Wish", usual: Usual, number: int, wildcards: "Wildcards") -> "Asked":
    """The picture `number`, counted from 0, of a wish: its seed is so much higher, and its choices are its own.

    Raises:
        RecipeError: there is no such sampler.
        DataError: there is no such wildcard.
    """
    from trainer.sampling.asked import Asked
    from trainer.sampling.prompts import Prompt
    from trainer.sampling.samplers import SAMPLERS, word_of

    said = {"steps": wish.steps, "guidance": wish.guidance}
    settings = usual.settings.model_copy(update={key: value for key, value in said.items() if value is not None})
    seed = (usual.seed if wish.seed is None else wish.seed) + number
    negative = usual.negative if wish.negative is None else wish.negative
    prompt = Prompt(
        text=wildcards.fill(wish.prompt, seed),
        negative=wildcards.fill(negative, seed),
        seed=seed,
        width=wish.width or usual.size[0],
        height=wish.height or usual.size[1],
    )
    sampler = usual.sampler if wish.sampler is None else SAMPLERS[word_of(wish.sampler)]
    return Asked(prompt=prompt, settings=settings, sampler=sampler)


def _of_file(file: Path) -> "list[Wish]":
    from trainer.core.errors import RecipeError
    from trainer.core.files import printable
    from trainer.data.decoding import read_regular
    from trainer.recipe.documents import read_document
    from trainer.sampling.prompt_files import wishes_of_lines, wishes_of_values

    where = printable(str(file))
    content = read_regular(file, _LARGEST)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError("This file is no UTF-8.", where=where, mend="Save it as UTF-8.") from error
    if file.suffix.lower() not in {".yaml", ".yml"}:
        return wishes_of_lines(text, where)
    document, values = read_document(text, where)
    if document.mistakes:
        first = document.mistakes[0]
        raise RecipeError(first.what, where=first.where, mend=first.mend)
    return wishes_of_values(values, where)
