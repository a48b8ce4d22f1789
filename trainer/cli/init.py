"""trainer init NAME --images DIR: look at the pictures and write a recipe that is ready to run."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

if TYPE_CHECKING:
    from trainer.core.device import Precision
    from trainer.data.account import Account

_MEMORY = re.compile(r"(?i)\s*(\d+(?:\.\d+)?)\s*(G|M)i?B?\s*")
_RECIPES = Path("recipes")
_SCHEMA = "recipe.schema.json"


def command(
    name: Annotated[str, Argument(metavar="NAME", help="The recipe's name: one word, such as my-cat.")],
    images: Annotated[Path, Option(metavar="DIR", help="The folder of pictures, with captions beside them.")],
    base: Annotated[
        str, Option(metavar="WEIGHTS", help="`bundled`, a .safetensors checkpoint, a diffusers folder, or a hub name.")
    ] = "bundled",
    memory: Annotated[
        str | None, Option(metavar="SIZE", help="What the run may use, such as 8GiB; else what is there.")
    ] = None,
    kind: Annotated[Literal["character", "style", "domain"], Option(help="What shall be learned.")] = "character",
) -> None:
    """Look at your pictures and write a recipe that is ready to run.

    Example: trainer init my-cat --images pictures/cat --kind character
    """
    from trainer.core.errors import RecipeError
    from trainer.core.files import printable, write_atomically
    from trainer.core.run_folder import check_name
    from trainer.recipe.parsing import read_settings
    from trainer.recipe.proposing import Kind, Occasion, propose
    from trainer.recipe.recipe import Recipe
    from trainer.recipe.schema import schema_text

    path = _RECIPES / f"{check_name(name)}.yaml"
    if path.exists():
        raise RecipeError(
            "There is a recipe of that name; it was not changed.",
            where=str(path),
            mend=f"Choose another name, or run this one: trainer train {path}",
        )
    allowed = None if memory is None else bytes_of(memory)
    account = _look(images)
    there, precision = _machine()
    text = propose(
        Occasion(
            name=name,
            kind=Kind(kind),
            images=str(images),
            examples=account.accepted,
            base=base,
            bundled=base == "bundled",
            resolution=_resolution(base),
            memory=there if allowed is None else allowed,
            precision=precision,
        )
    )
    read_settings(text, str(path), (), Recipe)  # what we propose can be read, whatever the names were
    write_atomically(path, text)
    if not (_RECIPES / _SCHEMA).exists():
        write_atomically(_RECIPES / _SCHEMA, schema_text(Recipe))
    where, refused = printable(str(path)), len(account.rejected)
    print(f"{len(account.accepted)} pictures, {sum(bool(e.caption) for e in account.accepted)} of them with captions.")
    if refused:
        print(f"{refused} file{'s' if refused > 1 else ''} cannot be used: `trainer doctor {where}` says why.")
    print(f"The recipe is in {where}; look at it, then run: trainer train {where}")


def bytes_of(memory: str) -> int:
    """What `memory` says in bytes: 8GiB, 8 GB, 6.5g, 900MiB; G and M are powers of 1024.

    Raises:
        RecipeError: it says no size.
    """
    from trainer.core.errors import RecipeError

    match = _MEMORY.fullmatch(memory)
    size = 0 if match is None else int(float(match[1]) * (1 << 30 if match[2] in "gG" else 1 << 20))
    if size <= 0:
        raise RecipeError(f"{memory!r} is no size.", where="--memory", mend="Write it such as 8GiB.")
    return size


def _look(images: Path) -> "Account":
    """The account of the folder; files that cannot be used are reported, and do not stop us.

    Raises:
        DataError: there is no such folder, or it holds no picture that can be used.
    """
    from trainer.core.errors import DataError
    from trainer.data.decoding import ImageLimits
    from trainer.data.scanning import scan
    from trainer.data.sources.folder import ImageFolder

    account = scan([ImageFolder(path=images)], ImageLimits())
    if not account.accepted:
        raise DataError(
            "None of the pictures in this folder can be used.",
            where=str(images),
            mend=f"The first is {account.rejected[0].name}: {account.rejected[0].reason}",
        )
    return account


def _resolution(base: str) -> int:
    """Pixels a side that the base was trained for; what is not on this disk is taken for a common SD 1.x.

    Raises:
        WeightsError: the base is a path, and there is no model.
    """
    import torch

    from trainer.core.device import Precision
    from trainer.families.auto import Auto

    on_the_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) and not Path(base).exists()
    if on_the_hub and Path(base).suffix not in (".safetensors", ".ckpt"):
        return 512
    return Auto(weights=base).load(Precision.float32, torch.device("cpu")).resolution  # its networks stay on the disk


def _machine() -> "tuple[int, Precision]":
    """The bytes that the best device has, and the number format that suits it."""
    import psutil
    import torch

    from trainer.core.device import Precision, pick_device

    device = pick_device()
    if device.type != "cuda":
        return int(psutil.virtual_memory().total), Precision.float32  # processors without bfloat16 are quicker so
    half = Precision.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.float16
    return int(torch.cuda.get_device_properties(device).total_memory), half
