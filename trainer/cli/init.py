"""trainer init NAME --images DIR: look at the pictures and write a recipe that is ready to run."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

if TYPE_CHECKING:
    from trainer.core.device import Precision
    from trainer.data.account import Account
    from trainer.recipe.proposing import Occasion, Pace

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
    from dataclasses import replace

    from trainer.core.errors import RecipeError
    from trainer.core.files import printable, write_atomically
    from trainer.core.run_folder import check_name
    from trainer.recipe.parsing import read_settings
    from trainer.recipe.proposing import Kind, Occasion, Pace, propose
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
    resolution, scale = _sizes(base)
    occasion = Occasion(
        name=name,
        kind=Kind(kind),
        images=str(images),
        examples=account.accepted,
        base=base,
        bundled=base == "bundled",
        resolution=resolution,
        precision=_precision(),
        pace=Pace(batch=8),  # what the bundled base likes; it fits everywhere
    )
    if not occasion.bundled:
        occasion = replace(occasion, pace=_pace(occasion, account, scale, allowed))
    text = propose(occasion)
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
    """What `memory` says in bytes, such as 8GiB.

    Raises:
        RecipeError: it says no size.
    """
    from trainer.core.device import bytes_of_size
    from trainer.core.errors import RecipeError

    try:
        return bytes_of_size(memory)
    except ValueError as error:
        raise RecipeError(f"{memory!r} is no size.", where="--memory", mend="Write it such as 8GiB.") from error


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


def _sizes(base: str) -> tuple[int, int]:
    """Pixels a side that the base was trained for, and pixels a latent column.

    What is not on this disk is taken for a common SD 1.x.

    Raises:
        WeightsError: the base is a path, and there is no model.
    """
    import torch

    from trainer.core.device import Precision
    from trainer.families.auto import Auto

    if _is_elsewhere(base):
        return 512, 8
    model = Auto(weights=base).load(Precision.float32, torch.device("cpu"))  # its networks stay on the disk
    return model.resolution, model.latent.scale


def _is_elsewhere(base: str) -> bool:
    """Whether the base is a model on the hub, which is not fetched for this."""
    on_the_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) and not Path(base).exists()
    return bool(on_the_hub) and Path(base).suffix not in (".safetensors", ".ckpt")


def _pace(occasion: "Occasion", account: "Account", scale: int, allowed: int | None) -> "Pace":
    """The quickest way that fits, planned on the recipe's own step; said where nothing fits."""
    from trainer.families.weightless import published_sd1
    from trainer.planning.advice import in_gib
    from trainer.planning.fitting import fastest_fit
    from trainer.planning.memory_plan import kind_here, memory_here
    from trainer.recipe.parsing import read_settings
    from trainer.recipe.proposing import Pace, largest_batch, propose
    from trainer.recipe.recipe import Recipe

    memory = memory_here() if allowed is None else allowed
    print(f"Looking for what fits into {in_gib(memory)}; this takes some ten seconds.", flush=True)
    recipe = read_settings(propose(occasion), "the proposal", (), Recipe)
    if _is_elsewhere(occasion.base):
        recipe = recipe.model_copy(update={"model": published_sd1()})
    buckets = recipe.data.buckets_of(account.accepted, scale).shapes
    most = largest_batch(occasion.kind, occasion.examples, bundled=False)
    largest = max(buckets, key=lambda bucket: bucket.width * bucket.height)
    fit = fastest_fit(recipe, largest, kind_here(), memory, most)
    verb = "takes" if fit.fits else "takes at the least"
    return Pace(
        batch=fit.recipe.batch,
        checkpointing=fit.recipe.gradient_checkpointing,
        quantize=fit.recipe.model.quantize,
        resident=fit.recipe.model.resident,
        note=f"Planned: it {verb} {in_gib(fit.plan.peak)} of {in_gib(memory)}; `trainer plan` tells more.",
    )


def _precision() -> "Precision":
    """The number format that suits this machine's best device."""
    import torch

    from trainer.core.device import Precision, pick_device

    if pick_device().type != "cuda":
        return Precision.float32  # processors without bfloat16 are quicker so
    return Precision.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.float16
