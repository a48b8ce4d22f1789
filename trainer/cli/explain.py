"""trainer explain [KEY]: what the keys of a recipe mean, and what they may be."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def command(
    key: Annotated[str | None, Argument(help="A key, such as adapter.rank or objective; all keys otherwise.")] = None,
    schema: Annotated[
        Path | None, Option(metavar="FILE", help="Write the JSON schema that editors complete recipes by, instead.")
    ] = None,
) -> None:
    """Tell what the keys of a recipe mean, and what they may be.

    Example: trainer explain adapter.rank
    """
    from trainer.core.files import write_atomically
    from trainer.recipe.explaining import explain
    from trainer.recipe.recipe import Recipe
    from trainer.recipe.schema import schema_text

    if schema is not None:
        write_atomically(schema, schema_text(Recipe))
        print(f"The schema of recipes is in {schema}")
        return
    print("\n".join(explain(Recipe, key)))
