"""trainer weights merge FILE:STRENGTH ... -o OUT: several adapters as one, or inside a base model."""

from typing import Annotated, Literal

from typer import Argument, Option

from trainer.cli.weights.asking import (
    AllMetadata,
    Base,
    Dtype,
    Energy,
    Family,
    Force,
    JsonFile,
    MaxRank,
    Out,
    Rank,
    rule_of,
    strengths,
    wishes,
)
from trainer.cli.weights.showing import show, working
from trainer.core.errors import RecipeError


def merge(  # noqa: PLR0913 - each is a word of the command line
    adapters: Annotated[
        list[str], Argument(metavar="FILE[:STRENGTH]...", help="Adapters, and how strongly each acts; 1 unless said.")
    ],
    out: Out,
    into: Annotated[
        str | None, Option(metavar="MODEL", help="A base model: the result is that model with the adapters in it.")
    ] = None,
    to: Annotated[
        Literal["single-file", "folder"] | None, Option(help="With --into: the layout; otherwise the base's own.")
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    max_rank: MaxRank = None,
    base: Base = None,
    dtype: Dtype = None,
    force: Force = False,
    all_metadata: AllMetadata = False,
    family: Family = None,
    json_file: JsonFile = None,
) -> None:
    """Write several adapters as one LoRA, or write a base model with adapters inside its weights.

    Without --rank or --energy the ranks of LoRAs add up and nothing is lost. A LoHa, LoKr or DoRA needs one of the two.

    Example: trainer weights merge style.safetensors:0.7 runs/blob/blob.safetensors:0.5 -o both.safetensors
    """
    from trainer.converting.adapters import merge_adapters
    from trainer.converting.bases import merge_into_base

    wanted = strengths(adapters)
    rule = rule_of(rank, energy, max_rank)
    wished = wishes(dtype, force=force, all_metadata=all_metadata, family=family)
    if into is None and to is not None:
        raise RecipeError("The layout of a model is asked for, and no model.", where="--to", mend="Give --into MODEL.")
    if into is not None and (rule is not None or base is not None):
        raise RecipeError(
            "Inside a model there is no rank, and the model is the base.",
            where="--rank, --energy, --base",
            mend="Leave them out, or leave out --into.",
        )
    with working(out) as progress:
        if into is not None:
            done = merge_into_base(into, wanted, out, to, wished, progress)
        else:
            done = merge_adapters(wanted, out, rule, base, wished, progress)
    show(done, json_file)
