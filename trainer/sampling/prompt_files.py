"""Files of prompts: lines as sd-scripts reads them, or the entries of a YAML list."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from trainer.core.errors import RecipeError
from trainer.core.files import printable
from trainer.core.settings import Settings


class Wish(Settings):
    """One picture that a file of prompts asks for; what it does not say is as the command line has it."""

    prompt: str
    """What it shows."""
    negative: str | None = None
    """What it does not show."""
    seed: NonNegativeInt | None = None
    """The picture's own chance."""
    width: PositiveInt | None = Field(default=None, le=16384)
    """Pixels."""
    height: PositiveInt | None = Field(default=None, le=16384)
    """Pixels."""
    steps: PositiveInt | None = Field(default=None, le=1000)
    """How often the network is asked."""
    guidance: float | None = Field(default=None, ge=0, le=50)
    """How strongly the words pull."""
    sampler: str | None = None
    """The solver, by any of its names."""


_FLAGS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "n": ("negative", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "l": ("guidance", float),
    "s": ("steps", int),
    "ss": ("sampler", str),
}
_FLAG: Final = re.compile(r"\s+--(?=[a-zA-Z]{1,3}(?:\s|$))")


def wishes_of_lines(text: str, where: str) -> list[Wish]:
    """One picture a line: `a prompt --n negative --w 832 --h 1216 --d 42 --l 7 --s 28 --ss euler_a`.

    Empty lines and those that begin with # are passed over.

    Raises:
        RecipeError: a flag is unknown or given twice, or what stands behind it is no number.
    """
    numbered = enumerate(text.splitlines(), start=1)
    return [
        _of_line(line.strip(), f"{where}:{number}") for number, line in numbered if line.strip()[:1] not in {"", "#"}
    ]


def wishes_of_values(values: object, where: str) -> list[Wish]:
    """One picture an entry: a text, or keys such as prompt, negative, seed, width, height, steps, guidance, sampler.

    Raises:
        RecipeError: it is no list of such.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise RecipeError(
            "A YAML file of prompts is a list.", where=where, mend="Write `- a red ball`, or `- prompt: a red ball`."
        )
    return [
        _checked({"prompt": value} if isinstance(value, str) else value, f"{where}, entry {number}")
        for number, value in enumerate(values, start=1)
    ]


def _of_line(line: str, where: str) -> Wish:
    prompt, *flags = _FLAG.split(line)
    said: dict[str, Any] = {"prompt": prompt}
    for flag in flags:
        name, _, value = flag.partition(" ")
        if name.lower() not in _FLAGS:
            raise RecipeError(
                f"There is no flag --{printable(name)} in a line of prompts.",
                where=where,
                mend="Known: " + ", ".join(f"--{known} ({key})" for known, (key, _) in _FLAGS.items()) + ".",
            )
        key, read = _FLAGS[name.lower()]
        if key in said:
            raise RecipeError(f"--{name} is given twice.", where=where, mend="Keep one of the two.")
        try:
            said[key] = read(value.strip())
        except ValueError as error:
            raise RecipeError(
                f"--{name} wants a number, and {printable(value.strip()[:40])!r} is none.", where=where
            ) from error
    return _checked(said, where)


def _checked(said: object, where: str) -> Wish:
    try:
        return Wish.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise RecipeError(
            f"This prompt cannot be read: {printable(f'{key}: ' if key else '')}{first['msg']}.",
            where=where,
            mend=f"An entry is a text, or has keys among: {', '.join(Wish.model_fields)}.",
        ) from error
