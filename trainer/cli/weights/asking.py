"""The words that several verbs of `trainer weights` take, and what they mean."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from trainer.core.errors import RecipeError

if TYPE_CHECKING:
    from trainer.converting.adapters import Wishes
    from trainer.weights.low_rank import RankRule

Out = Annotated[Path, Option("--out", "-o", metavar="OUT", help="The result.")]
Adapter = Annotated[Path, Argument(metavar="IN", help="An adapter: a .safetensors file, or peft's folder.")]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    Option(help="The number format of the result; otherwise that of the source."),
]
Rank = Annotated[int | None, Option(metavar="N", help="The same rank for every layer.")]
Energy = Annotated[
    float | None, Option(metavar="SHARE", help="As much rank a layer as keeps this share of its change, such as 0.9.")
]
MaxRank = Annotated[int | None, Option(metavar="N", help="With --energy: no layer gets more.")]
Base = Annotated[
    str | None, Option(metavar="MODEL", help="The base model; a DoRA means nothing without it.", show_default=False)
]
Family = Annotated[Literal["sd1", "sd2", "sdxl"] | None, Option(help="The family, where the file does not tell it.")]
Force = Annotated[bool, Option("--force", help="Replace the result of an earlier time.")]
AllMetadata = Annotated[
    bool, Option("--all-metadata", help="Keep also tag counts, names of folders, comments: what may be private.")
]
JsonFile = Annotated[Path | None, Option("--json", metavar="FILE", help="Write the whole report here as well.")]


def wishes(dtype: str | None, *, force: bool = False, all_metadata: bool = False, family: Family = None) -> "Wishes":
    """What is asked of every result."""
    from trainer.converting.adapters import Wishes
    from trainer.core.device import Precision

    precision = None if dtype is None else Precision(dtype)
    return Wishes(precision=precision, force=force, all_metadata=all_metadata, family=family)


def rule_of(rank: int | None, energy: float | None, most: int | None) -> "RankRule | None":
    """How much rank a layer gets; None where nothing is said.

    Raises:
        RecipeError: the words contradict each other, or a number is impossible.
    """
    from trainer.weights.low_rank import FixedRank, RetainedEnergy

    if rank is not None and energy is not None:
        raise RecipeError("A rank and an energy are two ways to say one thing.", where="--rank, --energy", mend=_ONE)
    if most is not None and energy is None:
        raise RecipeError("There is nothing to limit: --max-rank goes with --energy.", where="--max-rank", mend=_ONE)
    if energy is not None:
        return RetainedEnergy(energy, most)
    return None if rank is None else FixedRank(rank)


def needed_rule(rank: int | None, energy: float | None, most: int | None) -> "RankRule":
    """How much rank a layer gets.

    Raises:
        RecipeError: nothing is said, or as of `rule_of`.
    """
    rule = rule_of(rank, energy, most)
    if rule is None:
        raise RecipeError("How much rank the result has is not said.", where="--rank, --energy", mend=_ONE)
    return rule


def strengths(words: list[str]) -> list[tuple[Path, float]]:
    """Files and how strongly each acts, out of FILE:STRENGTH; 1 where nothing is said.

    Raises:
        RecipeError: a strength is no finite number.
    """
    return [_strength(word) for word in words]


def _strength(word: str) -> tuple[Path, float]:
    path, colon, number = word.rpartition(":")
    if not colon or Path(word).exists() or any(sign in number for sign in "/\\"):  # as in C:\models
        return Path(word), 1.0
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise RecipeError(
            f"The strength {number!r} is no number.", where=word, mend="Write it as file.safetensors:0.7."
        )
    return Path(path), strength


_ONE = "Give --rank 16; or --energy 0.9, with --max-rank 64 if you like."
