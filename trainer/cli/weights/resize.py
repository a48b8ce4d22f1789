"""trainer weights resize IN -o OUT: an adapter at a smaller rank."""

from trainer.cli.weights.asking import (
    Adapter,
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
    needed_rule,
    wishes,
)
from trainer.cli.weights.showing import show, working


def resize(  # noqa: PLR0913 - each is a word of the command line
    source: Adapter,
    out: Out,
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
    """Write an adapter at a smaller rank, and say what is lost; its strength stays the same.

    The result is the best that this rank can do. A LoHa, LoKr or DoRA becomes a LoRA.

    Example: trainer weights resize runs/blob/blob.safetensors -o blob-small.safetensors --rank 4
    """
    from trainer.converting.adapters import resize_adapter

    rule = needed_rule(rank, energy, max_rank)
    wished = wishes(dtype, force=force, all_metadata=all_metadata, family=family)
    with working(out) as progress:
        done = resize_adapter(source, out, rule, base, wished, progress)
    show(done, json_file)
