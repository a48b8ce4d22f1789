"""trainer weights extract BASE TUNED -o OUT: what a model has learned beyond another, as a LoRA."""

from typing import Annotated

from typer import Argument, Option

from trainer.cli.weights.asking import Dtype, Energy, Force, JsonFile, Out, Rank, needed_rule, wishes
from trainer.cli.weights.showing import show, working

_MOST = 128


def extract(  # noqa: PLR0913 - each is a word of the command line
    base: Annotated[str, Argument(metavar="BASE", help="The model that the LoRA is to be used with.")],
    tuned: Annotated[str, Argument(metavar="TUNED", help="The model that was made out of it.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    max_rank: Annotated[
        int | None, Option(metavar="N", help=f"With --energy: no layer gets more; {_MOST} unless said.")
    ] = None,
    dtype: Dtype = None,
    force: Force = False,
    json_file: JsonFile = None,
) -> None:
    """Write the difference of two models as a LoRA, and say how near it comes.

    Linear layers and convolutions of U-Net and text encoders; only one layer is in memory at a time.

    Example: trainer weights extract bundled tuned-model -o learned.safetensors --rank 16
    """
    from trainer.converting.bases import extract_lora

    most = _MOST if energy is not None and max_rank is None else max_rank
    rule = needed_rule(rank, energy, most)
    with working(out) as progress:
        done = extract_lora(base, tuned, out, rule, wishes(dtype, force=force), progress)
    show(done, json_file)
