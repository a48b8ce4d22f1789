"""trainer cache RECIPE: encode pictures and words once; look through what is there, make it sound, make it smaller."""

import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.core.progress import Phases
    from trainer.data.upkeep import Waste
    from trainer.recipe.recipe import Recipe

_WIDEST_NAME = 32  # letters; enough to tell encoders apart, and little enough for a terminal of 80


def command(  # noqa: PLR0913 - each is a word of the command line
    recipe: Annotated[Path, Argument(metavar="RECIPE", help="A recipe file, such as recipes/character-lora.yaml.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Changes, such as data.resolution=128.")
    ] = None,
    verify: Annotated[
        bool, Option("--verify", help="Read every entry of the cache folder, and remove damaged ones.")
    ] = False,
    prune: Annotated[bool, Option("--prune", help="Remove entries that the recipe does not need.")] = False,
    stat: Annotated[bool, Option("--stat", help="Show what the cache folder holds; damage is not looked for.")] = False,
    also: Annotated[
        list[Path] | None, Option(metavar="RECIPE", help="With --prune: keep this recipe's entries too; repeatable.")
    ] = None,
    yes: Annotated[bool, Option("--yes", help="With --prune: do not ask.")] = False,
    engine: Annotated[
        Literal["local", "ray"], Option(help="What encodes: this process and those beside it, or a Ray cluster.")
    ] = "local",
) -> None:
    """Encode pictures and words once; `train` does it too, where it was not done before.

    Example: trainer cache recipes/character-lora.yaml
    """
    from trainer.recipe.reading import read_recipe

    _check(verify=verify, prune=prune, stat=stat, also=also or [], yes=yes)
    wanted = read_recipe(recipe, overrides or [])
    if stat:
        _stat(wanted)
    elif verify:
        _verify(wanted)
    elif prune:
        _prune([wanted, *(read_recipe(other, []) for other in also or [])], yes=yes)
    elif engine == "ray":
        _fill_with_ray(wanted)
    else:
        _fill(wanted)


def _check(*, verify: bool, prune: bool, stat: bool, also: Sequence[Path], yes: bool) -> None:
    from trainer.core.errors import RecipeError

    if verify + prune + stat > 1:
        raise RecipeError(
            "--verify, --prune and --stat are different things to do.",
            where="the command line",
            mend="Give one at a time; --verify before --prune.",
        )
    if (also or yes) and not prune:
        raise RecipeError("--also and --yes belong to --prune.", where="the command line", mend="Leave them out.")


def _fill(recipe: "Recipe") -> None:
    from trainer.core.progress import phases
    from trainer.preparing import open_accelerator, prepare_data

    recipe.model.check()
    accelerator = open_accelerator(recipe)
    with phases(quiet=not accelerator.is_main_process) as progress:
        _, _, report = prepare_data(recipe, None, accelerator, progress)
    if accelerator.is_main_process:
        print(f"{report} In: {recipe.data.cache.shared or recipe.data.cache.folder}")


def _fill_with_ray(recipe: "Recipe") -> None:
    from trainer.core.progress import phases
    from trainer.preparing import draw_class_pictures, look_at_data, needs_of, open_model
    from trainer.ray_cache import fill_cache_with_ray

    recipe.model.check()
    model = open_model(recipe)
    with phases() as progress:
        draw_class_pictures(recipe, model, progress)
        account = look_at_data(recipe, None, progress)
        report = fill_cache_with_ray(recipe, needs_of(recipe, account, model), progress)
    print(f"{report} In: {recipe.data.cache.shared or recipe.data.cache.folder}")


def _stat(recipe: "Recipe") -> None:
    from rich.console import Console

    from trainer.data.upkeep import facts_of

    for title, shared in _places(recipe):
        facts = facts_of(recipe.data.cache.folder, shared)
        rows = [[one.title, f"{one.entries:,}", _megabytes(one.bytes), f"{one.shards:,}"] for one in facts]
        total = ["all", f"{sum(one.entries for one in facts):,}", _megabytes(sum(one.bytes for one in facts))]
        rows.append([*total, f"{sum(one.shards for one in facts):,}"])
        Console().print(_table(f"The cache in {title}", ["encoder", "entries", "size", "files"], rows))


def _verify(recipe: "Recipe") -> None:
    from rich.console import Console

    from trainer.core.progress import phases
    from trainer.data.upkeep import verify

    damaged = False
    for title, shared in _places(recipe):
        with phases() as progress:
            found = verify(recipe.data.cache.folder, progress, shared)
        rows = [[one.title, f"{one.rows:,}", f"{one.damaged_rows:,}", f"{one.damaged_files:,}"] for one in found]
        heads = ["encoder", "entries read", "damaged", "unreadable files"]
        Console().print(_table(f"The cache in {title}", heads, rows))
        damaged = damaged or any(one.damaged_rows or one.damaged_files for one in found)
    if damaged:
        print("What was damaged is removed; `trainer cache` and `trainer train` make it again.")
    else:
        print("Every entry is sound.")


def _places(recipe: "Recipe") -> list[tuple[str, str | None]]:
    """Where the recipe's entries lie, as messages call it: its folder, and the address that machines share."""
    cache = recipe.data.cache
    here: list[tuple[str, str | None]] = [(str(cache.folder), None)]
    return here if cache.shared is None else [*here, (cache.shared, cache.shared)]


def _prune(recipes: "Sequence[Recipe]", *, yes: bool) -> None:
    from rich.console import Console

    from trainer.core.progress import phases
    from trainer.data.upkeep import find_waste, prune

    root = recipes[0].data.cache.folder
    _check_same_folder(recipes)
    with phases() as progress:
        needed = _needed(recipes, progress)
        found = [waste for _, shared in _places(recipes[0]) for waste in find_waste(root, needed, progress, shared)]
    if not found:
        print(f"Nothing in {root} can go: all of it is needed.")
        return
    rows = [[one.title, f"{one.kept_rows:,}", f"{one.wasted_rows:,}", _megabytes(one.wasted_bytes)] for one in found]
    title = f"The cache in {root}: what {' and '.join(recipe.name for recipe in recipes)} need, and the rest"
    Console().print(_table(title, ["encoder", "stay", "go", "size"], rows))
    if not yes and not _agreed(found):
        print("Nothing was removed.")
        return
    with phases() as progress:
        prune(found, progress)
    print(f"Removed: {_summary(found)}.")


def _check_same_folder(recipes: "Sequence[Recipe]") -> None:
    from trainer.core.errors import RecipeError

    root = recipes[0].data.cache.folder
    for other in recipes[1:]:
        if (other.data.cache.folder.resolve(), other.data.cache.shared) != (
            root.resolve(),
            recipes[0].data.cache.shared,
        ):
            raise RecipeError(
                f"The recipe `{other.name}` keeps its entries in another folder: {other.data.cache.folder}.",
                where="--also",
                mend=f"Leave it out; only {root} is pruned.",
            )


def _needed(recipes: "Sequence[Recipe]", progress: "Phases") -> dict[str, Set[str]]:
    """What the recipes need of the cache: keys by the identity of their encoder; nothing is encoded."""
    from trainer.data.filling import needed_keys
    from trainer.preparing import look_at_data, needs_of, open_model

    needed: dict[str, Set[str]] = {}
    for recipe in recipes:
        recipe.model.check()
        account = look_at_data(recipe, None, progress)
        keys = needed_keys(needs_of(recipe, account, open_model(recipe)))
        for identity, own in keys.items():
            needed[identity] = needed.get(identity, frozenset[str]()) | own
    return needed


def _agreed(found: "Sequence[Waste]") -> bool:
    """Whether the person at the terminal says yes.

    Raises:
        RecipeError: there is no terminal.
    """
    from typer import Abort, confirm

    from trainer.core.errors import RecipeError

    if not sys.stdin.isatty():
        raise RecipeError(
            f"This would remove {_summary(found)}, and there is no terminal to ask at.",
            where="--prune",
            mend="Name the other recipes that use this cache with --also RECIPE; then add --yes.",
        )
    try:
        return confirm(f"Other recipes that use this cache would have to encode again. Remove {_summary(found)}?")
    except Abort:  # Ctrl-C or Ctrl-D
        return False


def _summary(found: "Sequence[Waste]") -> str:
    rows, size = sum(one.wasted_rows for one in found), sum(one.wasted_bytes for one in found)
    return f"{rows:,} entries of {_megabytes(size)}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    """A table whose texts are no markup and cannot paint the terminal; an encoder's name is cut, a number never."""
    from rich.table import Table
    from rich.text import Text

    from trainer.core.files import printable

    table = Table(title=Text(printable(title)), title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for name, *numbers in rows:
        short = name if len(name) <= _WIDEST_NAME else f"{name[: _WIDEST_NAME - 1]}…"
        table.add_row(*(Text(printable(cell)) for cell in (short, *numbers)))
    return table
