"""Weights as a recipe names them -> a folder on disk in the diffusers layout -> network parts."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from trainer.core.errors import WeightsError
from trainer.core.files import digest_of
from trainer.core.tensors import is_pickle, refused_pickle

BUNDLED = "bundled"
_BUNDLED_FOLDER = Path(__file__).parent / "bundled_base"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find_weights(weights: str) -> Path:
    """The diffusers folder that `weights` names: `bundled`, a folder, or a name on the model hub.

    Raises:
        WeightsError: there is no such thing, or it is a file of a kind that is not read.
    """
    if weights == BUNDLED:
        return _BUNDLED_FOLDER
    path = Path(weights).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise WeightsError(
                "This folder is no model in the diffusers layout: it holds no model_index.json.",
                where=str(path),
                mend="Name the folder that holds model_index.json, unet/, vae/, text_encoder/ and tokenizer/.",
            )
        return path
    if path.exists() or is_pickle(path) or path.suffix == ".safetensors":
        raise _refused_file(path)
    if _HUB_NAME.fullmatch(weights):
        return _from_hub(weights)
    raise WeightsError(
        f"There are no weights called {weights!r}.",
        where="model.weights",
        mend="Give `bundled`, a folder in the diffusers layout, or a hub name such as owner/model.",
    )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a model folder's file.

    Raises:
        WeightsError: the file is missing or holds no JSON object.
    """
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            "A part of this model is missing.", where=str(path), mend="Download the model again, whole."
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"This file is no readable JSON: {error}.", where=str(path)) from error
    if not isinstance(content, dict):
        raise WeightsError("This file should hold a JSON object.", where=str(path))
    return content  # pyright: ignore[reportUnknownVariableType]


def load_part(loader: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """One network of a model folder, in evaluation mode, frozen, in `dtype`; only safetensors files are opened.

    Args:
        loader: a diffusers or transformers class; both are called the same way, but share no type.
        folder: a model in the diffusers layout.
        part: the name of the sub-folder.
        dtype: given always, since transformers and diffusers disagree on what absence means.

    Raises:
        WeightsError: the part is missing, a pickle, broken, or does not fit its own configuration.
    """
    from diffusers.utils import logging as diffusers_logging
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    # their bars for a second's work would tear ours; what goes wrong comes to us as an exception
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    check_part(folder, part)
    try:
        network, report = loader.from_pretrained(
            folder / part, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"The {part} of this model cannot be loaded: {first_line}",
            where=str(folder / part),
            mend="Copy or download the model again.",
        ) from error
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise WeightsError(
            f"The {part} of this model lacks {len(missing)} weights, {missing[0]} among them.",
            where=str(folder / part),
            mend="Copy or download the model again.",
        )
    return network.eval().requires_grad_(requires_grad=False)


def check_part(folder: Path, part: str) -> None:
    """Make sure that a part has weights in safetensors.

    Raises:
        WeightsError: it has none, or only pickles.
    """
    files = list((folder / part).glob("*")) if (folder / part).is_dir() else []
    if any(file.suffix == ".safetensors" for file in files):
        return
    pickles = [file for file in files if is_pickle(file)]
    if pickles:
        raise refused_pickle(pickles[0])
    raise WeightsError(f"This model has no {part}.", where=str(folder / part), mend="Download the model again, whole.")


def digest_of_part(folder: Path, part: str) -> str:
    """SHA-256 over the names and contents of a part's configuration and weights."""
    digest = hashlib.sha256()
    for file in sorted((folder / part).iterdir()):
        if file.suffix in {".json", ".safetensors", ".txt"}:
            digest.update(f"{file.name}:{digest_of(file)}\n".encode())
    return digest.hexdigest()


def _from_hub(name: str) -> Path:
    """A hub model's snapshot on this disk, downloaded when it is not there; no pickles, no code."""
    from huggingface_hub import snapshot_download

    offline = os.environ.get("HF_HUB_OFFLINE", "0") == "1"
    try:
        wanted = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=offline))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"There is no folder {name!r} here, and the model hub did not give a model of that name.",
            where="model.weights",
            mend="Check the path or the name, and the network; HF_HUB_OFFLINE=1 uses only what is on the disk.",
        ) from error


def _refused_file(path: Path) -> WeightsError:
    if is_pickle(path):
        return refused_pickle(path)
    if not path.exists():
        return WeightsError("There is no such file.", where=str(path), mend="Check the path in model.weights.")
    return WeightsError(
        "Base weights are read from a folder in the diffusers layout, and this is a file.",
        where=str(path),
        mend="Use the diffusers version of this model (a folder with model_index.json).",
    )
