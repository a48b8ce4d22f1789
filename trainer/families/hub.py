"""Models from the hub: only the files that are read, of one commit."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from trainer.core.errors import WeightsError
from trainer.families.folder_files import weight_files

_NAME: Final = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w.-]+))?")
_PARTS: Final = ("unet", "vae", "text_encoder", "text_encoder_2")
_SMALL: Final = (*_PARTS, "tokenizer", "tokenizer_2", "scheduler")


def is_hub_name(name: str) -> bool:
    """Whether this could be a name on the hub: owner/model, or owner/model@revision."""
    return _NAME.fullmatch(name) is not None


def from_hub(name: str, where: str) -> tuple[Path, str | None]:
    """A hub model's folder on this disk, downloaded where it is not there, and its commit; no pickles, no code.

    Args:
        name: owner/model, or owner/model@revision.
        where: the key of the recipe, for messages.

    Raises:
        WeightsError: there is no such model, or it cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    fitting = _NAME.fullmatch(name)
    repository, revision = (fitting[1], fitting[2]) if fitting else (name, None)
    try:
        if os.environ.get("HF_HUB_OFFLINE", "0") == "1":
            folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
            return folder, _commit(folder)
        info = HfApi().model_info(repository, revision=revision)
        wanted = files_wanted(file.rfilename for file in info.siblings or ())
        # the commit, and not the branch: what moves between two questions cannot mix two versions
        folder = Path(snapshot_download(repository, revision=info.sha, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"There is no folder {name!r} here, and the model hub did not give a model of that name.",
            where=where,
            mend="Check the path or the name, and the network; HF_HUB_OFFLINE=1 uses only what is on the disk.",
        ) from error
    return folder, info.sha


def files_wanted(names: Iterable[str]) -> list[str]:
    """The files of a repository that a model is read from: its networks once, in one number format, and small files."""
    folders: dict[str, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        if len(path.parts) <= 2:
            folders.setdefault(str(path.parent), []).append(path.name)
    wanted = [name for name in ("model_index.json", "config.json") if name in folders.get(".", ())]
    for folder in _SMALL:
        wanted += [f"{folder}/{name}" for name in folders.get(folder, ()) if _is_small(name)]
    for folder in _PARTS:
        wanted += [f"{folder}/{name}" for name in weight_files(folders.get(folder, ()))]
    if "model_index.json" not in wanted:  # a network alone, such as an autoencoder
        wanted += weight_files(folders.get(".", ()))
    return sorted(wanted)


def _is_small(name: str) -> bool:
    return name.endswith((".json", ".txt")) and not name.endswith((".index.json", ".index.fp16.json"))


def _commit(folder: Path) -> str | None:
    """The hub's cache names the folder of a snapshot by its commit."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
