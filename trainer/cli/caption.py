"""trainer caption RECIPE|FOLDER: write the missing captions next to the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from trainer.cli.messages import SHOWN, check_no_files

if TYPE_CHECKING:
    from trainer.core.errors import RecipeError
    from trainer.data.captioners.base import Captioner
    from trainer.data.captioners.missing import Mode, Search
    from trainer.data.captioners.writing import Outcome
    from trainer.data.decoding import ImageLimits
    from trainer.data.sources.base import Source
    from trainer.data.sources.folder import ImageFolder


def command(  # noqa: PLR0913 - each is a word of the command line
    target: Annotated[Path, Argument(metavar="RECIPE|FOLDER", help="A recipe file, or a folder of pictures.")],
    overrides: Annotated[
        list[str] | None,
        Argument(
            metavar="KEY=VALUE", help="Changes: threshold=0.3 of a captioner, or captioner.threshold=0.3 of a recipe."
        ),
    ] = None,
    captioner: Annotated[
        str | None, Option(metavar="KIND", help="blip, wd_tagger, language, name, folder or fixed.")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Also replace captions that are there.")] = False,
    append: Annotated[
        bool, Option("--append", help="Also add to captions that are there; only tags they lack.")
    ] = False,
    suffix: Annotated[
        str | None,
        Option(metavar=".SUFFIX", help="Of caption files; nothing said: what the folder's captions end with."),
    ] = None,
    undo: Annotated[
        Path | None, Option(metavar="FILE", help="Take back what is on record in an undo file; write nothing else.")
    ] = None,
) -> None:
    """Write the missing captions next to the pictures of a recipe or a folder.

    Example: trainer caption datasets/blob --captioner blip prompt="a drawing of"
    """
    from trainer.core.errors import RecipeError

    if overwrite and append:
        raise RecipeError("--overwrite and --append exclude each other.", where="the command line", mend="Give one.")
    if undo is not None:
        if overwrite or append or suffix or captioner or (overrides and target.is_dir()):
            mend = "Give --undo alone, with the recipe or the folder that was captioned."
            raise RecipeError("--undo only takes back.", where="the command line", mend=mend)
        _take_back(target, overrides or [], undo)
        return
    mode: Mode = "overwrite" if overwrite else "append" if append else "missing"
    _caption(_order(target, overrides or [], captioner), mode, _checked(suffix))


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What is captioned, and by whom."""

    target: Path
    captioner: "Captioner"
    folders: "dict[str, ImageFolder]"  # by the name that the undo file has for them
    limits: "ImageLimits"
    home: Path  # where the undo file goes


def _order(target: Path, overrides: Sequence[str], kind: str | None) -> _Order:
    if not target.is_dir():
        return _of_recipe(target, overrides, kind)
    from trainer.data.decoding import ImageLimits
    from trainer.data.sources.folder import ImageFolder

    folder = ImageFolder(path=target)
    asked = _of_command(kind, overrides)
    return _Order(target=target, captioner=asked, folders={".": folder}, limits=ImageLimits(), home=target)


def _of_recipe(path: Path, overrides: Sequence[str], kind: str | None) -> _Order:
    from trainer.recipe.reading import read_recipe

    if kind is not None:
        _check_kind(kind)
        written = read_recipe(path).captioner
        if written is None or written.kind != kind:
            overrides = (f"captioner={{kind: {kind}}}", *overrides)
    recipe = read_recipe(path, overrides)
    if recipe.captioner is None:
        raise _no_kind("--captioner KIND, or `captioner` in the recipe")
    folders = _folders(recipe.data.sources)
    return _Order(target=path, captioner=recipe.captioner, folders=folders, limits=recipe.data.limits, home=Path.cwd())


def _of_command(kind: str | None, overrides: Sequence[str]) -> "Captioner":
    """The captioner that --captioner and KEY=VALUE ask for, with the messages of a recipe."""
    from trainer.core.settings import Settings
    from trainer.data.captioners import AnyCaptioner
    from trainer.recipe.parsing import read_settings

    class _Asked(Settings):
        captioner: AnyCaptioner

    if kind is None:
        raise _no_kind("--captioner KIND")
    _check_kind(kind)
    orders = [order if order.startswith("captioner.") else f"captioner.{order}" for order in overrides]
    return read_settings(f"captioner: {{kind: {kind}}}", "the command line", orders, _Asked).captioner


def _folders(sources: "Sequence[Source]") -> "dict[str, ImageFolder]":
    """The folders among the sources; other sources have no place for captions."""
    from trainer.core.errors import RecipeError
    from trainer.data.sources.folder import ImageFolder

    parts = [part for source in sources for part in source.parts()]
    others = [part for part in parts if not isinstance(part, ImageFolder)]
    if others:
        raise RecipeError(
            f"Captions can be written into folders of pictures only, and this source is none: {others[0].title}.",
            where="data.sources",
            mend="Write its captions where it was made, and caption the other folders by `trainer caption FOLDER`.",
        )
    return {str(part.path): part for part in parts if isinstance(part, ImageFolder)}


def _caption(order: _Order, mode: "Mode", suffix: str | None) -> None:
    from trainer.core.device import pick_device
    from trainer.core.progress import phases
    from trainer.data.captioners.missing import search
    from trainer.data.captioners.undoing import UndoFile
    from trainer.data.captioners.writing import Writing

    found = search(order.folders, mode, suffix)
    record = UndoFile(order.home)
    work = Writing(
        captioner=order.captioner, wishes=found.wishes, record=record, append=mode == "append", limits=order.limits
    )
    try:
        if found.wishes:
            with phases() as progress:
                work.run(pick_device(), progress)
    finally:  # also after ^C: what is written stays, and can be taken back
        _tell(found, work.outcome, mode)
        if record.path is not None:
            print(f"To take it back: trainer caption {order.target} --undo {record.path}")
    check_no_files([*found.refused, *work.outcome.failed], "could not be captioned", "Mend or remove them.")


def _tell(found: "Search", outcome: "Outcome", mode: "Mode") -> None:
    from trainer.core.log import logger

    for name, other in found.shared[:SHOWN]:
        logger.warning("%s has the same caption file as %s; its words are those.", name, other)
    for name in outcome.silent[:SHOWN]:
        logger.warning("%s: the captioner has no words for it.", name)
    if len(outcome.silent) > SHOWN:
        logger.warning("And %d more without words.", len(outcome.silent) - SHOWN)
    parts = [f"Wrote {outcome.written} captions."]
    if found.there:
        parts.append(f"{found.there} pictures had one and keep it.")
    if outcome.unchanged:
        parts.append(f"{outcome.unchanged} files stayed as they are.")
    if found.there and not found.wishes and mode == "missing":
        parts.append("--overwrite replaces captions, --append adds to them.")
    print(" ".join(parts))


def _take_back(target: Path, overrides: Sequence[str], record: Path) -> None:
    from trainer.core.progress import phases
    from trainer.data.captioners.undoing import undo
    from trainer.recipe.reading import read_recipe

    if target.is_dir():
        roots = {".": target}
    else:
        folders = _folders(read_recipe(target, overrides).data.sources)
        roots = {name: folder.path for name, folder in folders.items()}
    with phases() as progress:
        done = undo(record, roots, progress)
    already = f" {done.already} held that already." if done.already else ""
    print(f"{done.restored} files hold again what they held before.{already}")
    check_no_files(done.left, "were left alone", "Look at them yourself.")


def _checked(suffix: str | None) -> str | None:
    import re

    from trainer.core.errors import RecipeError

    if suffix is not None and not re.fullmatch(r"\.[a-z0-9_]+", suffix):
        raise RecipeError(
            "A suffix is a dot and small letters or digits.", where=f"--suffix {suffix}", mend="Such as --suffix .txt"
        )
    return suffix


def _kinds() -> "dict[str, type[Captioner]]":
    from typing import get_args

    from trainer.data.captioners import AnyCaptioner

    members: tuple[type[Captioner], ...] = get_args(get_args(AnyCaptioner)[0])
    return {str(member.model_fields["kind"].default): member for member in members}


def _check_kind(kind: str) -> None:
    from difflib import get_close_matches

    from trainer.core.errors import RecipeError

    kinds = _kinds()
    if kind not in kinds:
        close = get_close_matches(kind, kinds, n=1)
        guess = f"Did you mean `{close[0]}`? " if close else ""
        raise RecipeError(
            f"There is no captioner `{kind}`.", where="--captioner", mend=f"{guess}Known: {', '.join(kinds)}."
        )


def _no_kind(where: str) -> "RecipeError":
    from trainer.core.errors import RecipeError

    lines = [f"    {kind}: {str(member.__doc__).splitlines()[0]}" for kind, member in _kinds().items()]
    return RecipeError(
        "Nothing says which captioner shall write.", where=where, mend="Choose one:\n" + "\n".join(lines)
    )
