"""Where results go: nothing is overwritten unasked, and nothing half-done takes the name."""

import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.core.errors import RecipeError
from trainer.core.files import flush_to_disk

SUFFIX: Final = ".safetensors"
_SIGNS: Final = ("model_index.json", "adapter_config.json", "*/adapter_config.json")
"""What tells a folder that was written by such a tool, and may be replaced, from somebody's other files."""


def check_file(path: Path, *, force: bool) -> None:
    """Make sure that a file may be written.

    Raises:
        RecipeError: something of the name is there, or the name is that of no .safetensors file.
    """
    if path.suffix != SUFFIX:
        raise RecipeError(
            "The result is a single file, and its name must end in .safetensors.",
            where=str(path),
            mend="Add the ending.",
        )
    if path.is_dir():
        raise RecipeError("There is a folder of this name.", where=str(path), mend="Choose another name.")
    if path.exists() and not force:
        raise _exists(path)


def check_folder(path: Path, *, force: bool) -> None:
    """Make sure that a folder may be written.

    Raises:
        RecipeError: something of the name is there that may not be replaced, or the name is that of a file.
    """
    if path.suffix == SUFFIX:
        raise RecipeError(
            "The result is a folder, and this is the name of a file.", where=str(path), mend="Leave the ending out."
        )
    if not path.exists():
        return
    if not force:
        raise _exists(path)
    if not path.is_dir() or not any(next(path.glob(sign), None) for sign in _SIGNS):
        raise RecipeError(
            "What is there is no folder of a model or an adapter, so it is not replaced.",
            where=str(path),
            mend="Choose another name.",
        )


@contextmanager
def replacing_folder(path: Path) -> Generator[Path, None, None]:
    """Yield the name of a folder that is not there yet; on leaving without an error it takes the name `path`.

    An old folder of the name goes after the new one stands; after an error it is untouched and the new one gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(6)
    fresh = path.with_name(f".{path.name[:40]}.{mark}.new")
    old = path.with_name(f".{path.name[:40]}.{mark}.old")
    try:
        yield fresh
        if path.exists():
            path.rename(old)
        fresh.rename(path)
        flush_to_disk(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _exists(path: Path) -> RecipeError:
    return RecipeError(
        "There is something of this name already.", where=str(path), mend="Choose another name, or give --force."
    )
