"""A recipe file and orders of the command line -> Recipe; and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.core.errors import RecipeError
from trainer.core.files import printable
from trainer.core.redacting import has_secret
from trainer.recipe.parsing import read_settings, write_settings
from trainer.recipe.recipe import Recipe

_MOST_BYTES = 256 * 1024


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, with each `KEY=VALUE` of `overrides` laid over it.

    Raises:
        RecipeError: the file cannot be read, or it holds mistakes; all of them are named. Or it holds a secret, which
            would be kept beside the run and given away with the recipe.
    """
    recipe = read_settings(text_of(path), printable(str(path)), overrides, Recipe)
    _check_secrets(recipe.model_dump(mode="json"), printable(str(path)))
    return recipe


def write_recipe(recipe: Recipe) -> str:
    """`recipe` as YAML, every default written out; reading it gives an equal recipe."""
    return write_settings(recipe)


def text_of(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        RecipeError: there is no such file, or it is too large or no UTF-8.
    """
    where = printable(str(path))
    if not path.is_file():
        what = "This is a folder, not a recipe." if path.is_dir() else "There is no such recipe."
        raise RecipeError(what, where=where, mend="Name a recipe file, such as recipes/character-lora.yaml.")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"This recipe cannot be read: {error.strerror}.", where=where, mend="Check it.") from error
    if len(content) > _MOST_BYTES:
        raise RecipeError(
            f"This file is larger than {_MOST_BYTES // 1024} KiB: no recipe is.",
            where=where,
            mend="Name a recipe; long lists of prompts belong into a file of their own.",
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError("This file is no UTF-8 text.", where=f"{where}:{line}", mend="Save it as UTF-8.") from error


def _check_secrets(value: object, where: str, key: str = "") -> None:
    """Make sure that no value looks like a password or a service's key; the message does not repeat it."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_secrets(part, where, f"{key}.{name}".lstrip("."))
    elif isinstance(value, str):
        if has_secret(value):
            raise RecipeError(
                f"A secret stands under {key}.",
                where=where,
                mend="Take it out: keys and passwords come from the environment, such as HF_TOKEN and WANDB_API_KEY, "
                "or from a service's own login.",
            )
    elif isinstance(value, Sequence):
        for number, part in enumerate(value):
            _check_secrets(part, where, f"{key}.{number}")
