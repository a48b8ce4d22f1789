"""What varies along the columns, the rows and from sheet to sheet."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainer.core.errors import RecipeError
from trainer.core.files import printable
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import SAMPLERS, TITLES, Sampler, word_of

KINDS: Final = ("prompt", "seed", "step", "strength", "guidance", "sampler", "adapter")
OF_ADAPTER: Final = frozenset({"step", "strength", "adapter"})
"""Along these a value without the adapter makes sense."""
BASE_LABEL: Final = "without adapter"

_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_MOST: Final = 1000  # values of an axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One picture of a sheet, and all that a person says about it."""

    prompt: Prompt
    settings: DrawSettings
    sampler: Sampler
    strength: float  # 0: without the adapter
    step: int | None = None  # of the checkpoint; None: what is trained as a whole
    adapter: Path | None = None  # a file; None: what was named first


Change = Callable[[Cell], Cell]


@dataclass(frozen=True, slots=True)
class Value:
    """One place of an axis."""

    label: str
    change: Change


@dataclass(frozen=True, slots=True)
class Axis:
    """What varies, and its values in order."""

    kind: str  # one of KINDS
    values: tuple[Value, ...]

    @property
    def title(self) -> str:
        """The axis for a person."""
        return {"step": "checkpoint", "adapter": "adapter file"}.get(self.kind, self.kind)

    def with_base(self) -> "Axis":
        """The same, and first a value without the adapter."""
        return Axis(self.kind, (_without_adapter(), *self.values))


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet: labels, and the cells row by row."""

    label: str  # of the third axis; "" where there is none
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an axis may be filled with where it names no values."""

    prompts: Sequence[str]
    steps: Sequence[int]  # of which a checkpoint or an adapter is there


def axis_of(word: str, known: Known) -> Axis:
    """The axis that `step=100,200,last`, `seed=0..3`, `strength=0.6,1`, `sampler=Euler a,DDIM` or `prompt` means.

    Args:
        word: as on the command line.
        known: the prompts, which are given by themselves, and the steps.

    Raises:
        RecipeError: the axis or one of its values does not exist.
    """
    name, equals, text = word.partition("=")
    kind = next((kind for kind in KINDS if kind == name.strip()), None)
    if kind is None:
        raise RecipeError(
            f"There is no axis {printable(name)!r}.", where="--axis", mend=f"Choose among: {', '.join(KINDS)}."
        )
    given = [part.strip() for part in text.split(",") if part.strip()]
    if equals and not given:
        raise RecipeError(f"The axis {kind} has no values.", where="--axis", mend=f"Write {kind}=..., or {kind} alone.")
    values = _VALUES[kind](given, known)
    if not values:
        raise RecipeError(f"There is nothing to put on the axis {kind}.", where="--axis", mend=_MENDS.get(kind))
    if len(values) > _MOST:
        raise RecipeError(f"The axis {kind} has {len(values):,} values.", where="--axis", mend=f"Ask for {_MOST}.")
    doubled = [label for label, same in itertools.groupby(sorted(value.label for value in values)) if len([*same]) > 1]
    if doubled:
        raise RecipeError(f"The axis {kind} has {printable(doubled[0])!r} twice.", where="--axis")
    return Axis(kind, values)


def sheets_of(axes: Sequence[Axis], usual: Cell) -> list[Sheet]:
    """The sheets of two or three axes: columns, rows, and one sheet for each value of the third.

    Args:
        axes: columns first.
        usual: what is said by no axis.

    Raises:
        RecipeError: there are not two or three, two of one kind, or two that do not go together.
    """
    kinds = [axis.kind for axis in axes]
    if len(axes) not in (2, 3) or len(set(kinds)) != len(kinds):
        raise RecipeError(
            f"A grid has two or three different axes, and these are asked for: {', '.join(kinds) or 'none'}.",
            where="--axis",
            mend="Give --axis two or three times: the columns, the rows, and what differs from sheet to sheet.",
        )
    if {"step", "adapter"} <= set(kinds):
        raise RecipeError("A step is one of this run, and an adapter file has its own.", where="--axis")
    columns, rows, *others = axes
    sheets = others[0].values if others else (Value("", lambda cell: cell),)
    return [
        Sheet(
            label=_heading(others[0], sheet) if others else "",
            columns=tuple(value.label for value in columns.values),
            rows=tuple(value.label for value in rows.values),
            cells=tuple(
                tuple(_changed(usual, (sheet, row, column)) for column in columns.values) for row in rows.values
            ),
        )
        for sheet in sheets
    ]


def with_base(axes: Sequence[Axis]) -> list[Axis]:
    """The same axes with a column, row or sheet without the adapter, where one of them is about the adapter.

    Where none is, and there are but two, a third one tells with and without apart; three stay as they are.
    """
    of_adapter = next((place for place, axis in enumerate(axes) if axis.kind in OF_ADAPTER), None)
    if of_adapter is not None:
        return [axis.with_base() if place == of_adapter else axis for place, axis in enumerate(axes)]
    if len(axes) != 2:
        return list(axes)
    return [*axes, Axis("strength", (Value("with adapter", lambda cell: cell), _without_adapter()))]


def _heading(axis: Axis, value: Value) -> str:
    """What stands above a sheet; a prompt, a solver and a file do not say by themselves what they are."""
    says_itself = axis.kind not in {"prompt", "sampler", "adapter"} or value.label == BASE_LABEL
    return value.label if says_itself else f"{axis.title}: {value.label}"


def _changed(cell: Cell, values: Sequence[Value]) -> Cell:
    for value in values:
        cell = value.change(cell)
    # without an adapter it is one picture, whatever the other axes say of adapters
    return replace(cell, step=None, adapter=None) if cell.strength == 0 else cell


def _without_adapter() -> Value:
    def change(cell: Cell) -> Cell:
        return replace(cell, strength=0.0)

    return Value(BASE_LABEL, change)


def _prompts(given: Sequence[str], known: Known) -> tuple[Value, ...]:
    if given:
        raise RecipeError(
            "A prompt may hold commas, so prompts are given by themselves.",
            where="--axis",
            mend='Write --axis prompt, and each prompt as --prompt "...".',
        )
    return tuple(Value(text, _with_prompt(text=text)) for text in dict.fromkeys(known.prompts))


def _seeds(given: Sequence[str], known: Known) -> tuple[Value, ...]:
    seeds = [seed for part in given or ("0..3",) for seed in _whole_numbers(part)]
    return tuple(Value(f"seed {seed}", _with_prompt(seed=seed)) for seed in seeds)


def _steps(given: Sequence[str], known: Known) -> tuple[Value, ...]:
    asked: list[int] = []
    for part in given or [str(step) for step in known.steps]:
        if part == "last":
            asked.append(max(known.steps, default=-1))
        else:
            asked += [step for step in _whole_numbers(part) if ".." not in part or step in known.steps]
    missing = [step for step in asked if step not in known.steps]
    if missing:
        there = ", ".join(map(str, known.steps)) or "none"
        raise RecipeError(
            "Nothing was kept of this run." if missing[0] < 0 else f"Nothing was kept of step {missing[0]}.",
            where="--axis step",
            mend=f"There are: {there}. Of how many steps the adapter is kept says checkpoints.adapters in the recipe.",
        )
    return tuple(Value(f"step {step}", _at_step(step)) for step in dict.fromkeys(asked))


def _strengths(given: Sequence[str], known: Known) -> tuple[Value, ...]:
    numbers = [_number(part, "strength") for part in given or ("0.4", "0.6", "0.8", "1")]
    return tuple(Value(f"strength {number:g}", _at_strength(number)) for number in numbers)


def _guidances(given: Sequence[str], known: Known) -> tuple[Value, ...]:
    numbers = [_number(part, "guidance") for part in given or ("2", "4", "7")]
    outside = [number for number in numbers if not 0 <= number <= 50]
    if outside:
        raise RecipeError(f"A guidance of {outside[0]:g} is not between 0 and 50.", where="--axis guidance")
    return tuple(Value(f"guidance {number:g}", _with_guidance(number)) for number in numbers)


def _samplers(given: Sequence[str], known: Known) -> tuple[Value, ...]:
    words = [word_of(part) for part in given] or ["ddim", "euler_a", "dpm++_2m_karras", "unipc"]
    return tuple(Value(TITLES[word], _with_sampler(SAMPLERS[word])) for word in words)


def _adapters(given: Sequence[str], known: Known) -> tuple[Value, ...]:
    files = [Path(part) for part in given]
    alike = len({file.stem for file in files}) < len(files)
    missing = [file for file in files if not file.exists()]
    if missing:
        raise RecipeError("There is no such adapter.", where=printable(str(missing[0])))
    return tuple(Value(str(file) if alike else file.stem, _with_adapter(file)) for file in files)


def _with_prompt(**said: str | int) -> Change:
    return lambda cell: replace(cell, prompt=cell.prompt.model_copy(update=said))


def _with_guidance(guidance: float) -> Change:
    return lambda cell: replace(cell, settings=cell.settings.model_copy(update={"guidance": guidance}))


def _with_sampler(sampler: Sampler) -> Change:
    return lambda cell: replace(cell, sampler=sampler)


def _with_adapter(file: Path) -> Change:
    return lambda cell: replace(cell, adapter=file, step=None)


def _at_step(step: int) -> Change:
    return lambda cell: replace(cell, step=step)


def _at_strength(strength: float) -> Change:
    # another axis may have said that there is no adapter
    return lambda cell: replace(cell, strength=strength if cell.strength else 0.0)


def _whole_numbers(part: str) -> Iterator[int]:
    """The numbers of `3` or `0..3`."""
    span = _RANGE.fullmatch(part)
    if span is not None and int(span[2]) - int(span[1]) < 1_000_000:
        yield from range(int(span[1]), int(span[2]) + 1)
    elif part.isdigit() and len(part) <= 19:
        yield int(part)
    else:
        raise RecipeError(
            f"{printable(part)!r} is no whole number and no range.", where="--axis", mend="Write 3, or 0..3."
        )


def _number(part: str, name: str) -> float:
    try:
        number = float(part)
    except ValueError as error:
        raise RecipeError(f"{printable(part)!r} is no {name}.", where=f"--axis {name}", mend="Write 0.8.") from error
    if not abs(number) <= 1000:
        raise RecipeError(f"{part} is no {name}.", where=f"--axis {name}")
    return number


_VALUES: Final[Mapping[str, Callable[[Sequence[str], Known], tuple[Value, ...]]]] = {
    "prompt": _prompts,
    "seed": _seeds,
    "step": _steps,
    "strength": _strengths,
    "guidance": _guidances,
    "sampler": _samplers,
    "adapter": _adapters,
}
_MENDS: Final[Mapping[str, str]] = {
    "prompt": 'Give prompts as --prompt "...", or in a file with --prompts FILE.',
    "step": "Of this run no step was kept; draw its result along other axes.",
    "adapter": "Write adapter=FIRST.safetensors,SECOND.safetensors.",
}
