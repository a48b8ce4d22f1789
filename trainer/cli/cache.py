"""trainer cache RECIPE: encode pictures and words once."""

from pathlib import Path
from typing import Annotated

from typer import Argument


def command(
    recipe: Annotated[Path, Argument(metavar="RECIPE", help="A recipe file, such as recipes/character-lora.yaml.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes, such as data.resolution=128.")
    ] = None,
) -> None:
    """Encode pictures and words once; `train` does it too, where it was not done before.

    Example: trainer cache recipes/character-lora.yaml
    """
    from trainer.assemble import cache_data, look_at_data, open_model
    from trainer.core.progress import phases
    from trainer.recipe.reading import read_recipe

    wanted = read_recipe(recipe, overrides or [])
    wanted.model.check()
    with phases() as progress:
        account = look_at_data(wanted, None, progress)
        report = cache_data(wanted, account, open_model(wanted), progress)
    print(f"{report} In: {wanted.data.cache.folder}")
