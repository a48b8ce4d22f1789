"""A data set's name on the Hugging Face hub -> the files of one commit on this disk."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.sources.suffixes import PICTURE_SUFFIXES

HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TABLES: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def is_pinned(revision: str | None) -> bool:
    """Whether a revision is a commit, which never changes."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def commit_of(name: str, revision: str | None) -> str:
    """The commit that `revision` (None: the newest) means today; a commit itself needs no network.

    Raises:
        DataError: the hub does not know it, or is out of reach.
    """
    if revision is not None and is_pinned(revision):
        return revision
    import httpx
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise _out_of_reach(name, error) from error
    if commit is None or not is_pinned(commit):
        raise DataError("The hub gives no commit for this data set.", where=printable(name), mend="Write `revision`.")
    return commit


def folder_of(name: str, commit: str) -> Path:
    """The folder with the files of a data set at a commit, downloaded when it is first asked for.

    Parquet files, a data set saved by `save_to_disk`, or pictures with their captions, of which the first that is
    there is taken; nothing else is downloaded, and nothing of it is ever run.

    Raises:
        DataError: the hub is out of reach, or the repository holds nothing of the kind.
    """
    import httpx
    from huggingface_hub import HfApi, cached_assets_path, snapshot_download

    folder = cached_assets_path("sd-trainer", namespace=name, subfolder=commit)
    done = folder.with_name(f"{commit}.complete")  # beside it, so that no reader counts it
    if done.is_file():
        return folder
    try:
        files = [file.rfilename for file in HfApi().dataset_info(name, revision=commit).siblings or ()]
        wanted = wanted_files(files, name)
        # With `local_dir` the files are files: the hub's own cache is made of links that lead out of the folder.
        snapshot_download(name, repo_type="dataset", revision=commit, local_dir=folder, allow_patterns=wanted)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise _out_of_reach(name, error) from error
    done.touch()
    return folder


def wanted_files(files: Sequence[str], name: str) -> list[str]:
    """Which files of a repository are downloaded.

    Raises:
        DataError: none of them is of a kind that is read.
    """
    parquet = [file for file in files if file.endswith(".parquet") and not file.endswith(_TABLES)]
    if parquet:
        return [_literally(file) for file in parquet]
    if any(file.endswith(("state.json", "dataset_dict.json")) for file in files):
        return ["*.arrow", "*.json"]
    if any(Path(file).suffix.lower() in PICTURE_SUFFIXES for file in files):
        endings = (*PICTURE_SUFFIXES, ".txt", ".caption", *_TABLES)
        return [_literally(file) for file in files if file.lower().endswith(endings)]
    suffixes = sorted({Path(file).suffix for file in files if Path(file).suffix})
    raise DataError(
        f"This repository holds no Parquet, no Arrow and no pictures, but {', '.join(suffixes) or 'nothing'}.",
        where=printable(name),
        mend="Scripts are never run. Tar shards: download them, and use kind: webdataset. Archives: unpack them.",
    )


def _literally(file: str) -> str:
    """A file's name as a pattern that means this file alone."""
    return re.sub(r"([*?\[])", r"[\1]", file)


def _out_of_reach(name: str, error: Exception) -> DataError:
    reason = printable(str(error).strip().partition("\n")[0])[:200] or type(error).__name__
    return DataError(
        f"This is no folder or file here, and the hub does not give it: {reason}",
        where=printable(name),
        mend="Check the name and the network. Without a network, give a path, or a `revision` that is downloaded.",
    )
