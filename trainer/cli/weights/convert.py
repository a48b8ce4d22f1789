"""trainer weights convert IN OUT --to LAYOUT: the same model or adapter in another layout."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from trainer.cli.weights.asking import AllMetadata, Dtype, Family, Force, JsonFile, wishes
from trainer.cli.weights.showing import show, working
from trainer.core.errors import RecipeError


def convert(  # noqa: PLR0913 - each is a word of the command line
    source: Annotated[str, Argument(metavar="IN", help="An adapter or a base model: a file, a folder or a hub name.")],
    out: Annotated[Path, Argument(metavar="OUT", help="The new file; for peft and folder a folder.")],
    to: Annotated[
        Literal["kohya", "diffusers", "peft", "single-file", "folder"],
        Option(help="Of adapters kohya, diffusers or peft; of base models single-file or folder (of diffusers)."),
    ],
    dtype: Dtype = None,
    force: Force = False,
    all_metadata: AllMetadata = False,
    family: Family = None,
    json_file: JsonFile = None,
) -> None:
    """Write an adapter or a base model in another layout; what cannot be carried over is said.

    kohya is what diffusers, ComfyUI, Forge, A1111 and sd-scripts all load.

    Example: trainer weights convert runs/blob/blob.safetensors blob-diffusers.safetensors --to diffusers
    """
    from trainer.converting.adapters import convert_adapter
    from trainer.converting.bases import convert_base
    from trainer.weights.opening import holds_adapter

    wished = wishes(dtype, force=force, all_metadata=all_metadata, family=family)
    adapter = holds_adapter(Path(source))
    if to == "single-file" or to == "folder":
        if adapter:
            raise _mistaken(source, "an adapter", "kohya, diffusers or peft")
        with working(out) as progress:
            done = convert_base(source, out, to, wished, progress)
    else:
        if not adapter:
            raise _mistaken(source, "no adapter", "single-file or folder")
        with working(out):
            done = convert_adapter(Path(source), out, to, wished)
    show(done, json_file)


def _mistaken(source: str, what: str, layouts: str) -> RecipeError:
    return RecipeError(f"This is {what}: its layout can be {layouts}.", where=source, mend=f"Give --to {layouts}.")
