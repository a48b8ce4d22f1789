"""Weights as a captioner names them -> a folder on this disk -> a network and what prepares its input.

Only safetensors are opened, and no model brings its own code. The hub is asked for what is not on this disk, and for
nothing else. Pictures are prepared by Pillow, so that a picture gives the same words with and without torchvision.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.core.files import printable
from trainer.core.tensors import is_pickle

_WHERE: Final = "captioner.weights"
_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_MODEL_FILES: Final = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")


def find_weights(weights: str, revision: str | None, wanted: Sequence[str], lacks: Callable[[Path], str]) -> Path:
    """The folder that `weights` means: itself, or the hub's snapshot on this disk, downloaded if it is not there.

    Args:
        weights: a folder, or a name on the model hub.
        revision: which version on the hub; None: its newest.
        wanted: patterns of the files that are downloaded.
        lacks: says what a folder lacks, or "".

    Raises:
        WeightsError: there is no such thing, or it lacks something.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        if missing := lacks(path):
            raise _incomplete(path, missing)
        return path
    if path.exists() or not _HUB_NAME.fullmatch(weights):
        raise WeightsError(
            f"There is no folder {printable(weights)!r}, and no model on the hub can have this name.",
            where=_WHERE,
            mend="Give the folder that holds the model's files, or a hub name such as owner/model.",
        )
    kept = _snapshot(weights, revision, wanted, local=True)
    if kept is not None and not lacks(kept):
        return kept
    offline = os.environ.get("HF_HUB_OFFLINE", "0") == "1"
    fetched = None if offline else _snapshot(weights, revision, wanted, local=False)
    if fetched is None:
        raise WeightsError(
            f"The model {weights!r} is not on this disk"
            + (", and HF_HUB_OFFLINE=1 forbids to download it." if offline else ", and the hub did not give it."),
            where=_WHERE,
            mend="Check the name, the revision and the network; or copy the model here and name its folder.",
        )
    if missing := lacks(fetched):
        raise _incomplete(fetched, missing)
    return fetched


def find_model(weights: str, revision: str | None) -> Path:
    """The folder of a model in the layout of transformers.

    Raises:
        WeightsError: as `find_weights`.
    """
    return find_weights(weights, revision, _MODEL_FILES, _lacks)


def load_network(loader: Any, folder: Path, precision: Precision, device: torch.device) -> Any:
    """The network in `folder`, on `device`, in evaluation mode.

    Args:
        loader: a class of transformers; they share no type.
        folder: a model in the layout of transformers.
        precision: the number format of its weights.
        device: where it computes.

    Raises:
        WeightsError: it is broken, of another class, or does not fit its own configuration.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig
    from transformers.utils import logging

    # a bar for a second's work would tear ours; what goes wrong comes to us as an exception
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_class(loader, config, folder)
        network, report = loader.from_pretrained(
            folder,
            config=config,
            dtype=precision.dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise _unloadable(folder, error) from error
    if missing := sorted(report.get("missing_keys", ())):
        raise WeightsError(
            f"This model lacks {len(missing)} weights, {missing[0]} among them.",
            where=str(folder),
            mend="Download it again, whole; or it is a model for another kind of captioner.",
        )
    return network.eval().requires_grad_(requires_grad=False).to(device)


def load_processor(folder: Path) -> Any:  # Any: the processors of transformers share no useful type
    """What turns pictures and words into a network's input, as the folder says; without the part for videos.

    Transformers' own way, AutoProcessor, wants torchvision for every model that could also watch videos.

    Raises:
        WeightsError: its files are missing or broken, or it is no model for pictures and words.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import PROCESSOR_MAPPING, AutoConfig, AutoImageProcessor, AutoTokenizer

    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **here)
        chosen: Any = PROCESSOR_MAPPING[type(config)]
        parts: dict[str, Any] = {
            "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil", **here),
            "tokenizer": AutoTokenizer.from_pretrained(folder, **here),
            "video_processor": None,
        }
        said, _ = chosen.get_processor_dict(folder, local_files_only=True)
        blind: Any = type(chosen.__name__, (chosen,), {"check_argument_for_proper_class": _check_but_videos(chosen)})
        return blind.from_args_and_dict([parts[name] for name in chosen.get_attributes()], said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        raise _unloadable(folder, error) from error


def _check_class(loader: Any, config: Any, folder: Path) -> None:
    """Make sure that the folder's model is of the loader's class; transformers itself only warns."""
    wanted = getattr(loader, "config_class", None)  # the Auto classes have none, and look for themselves
    if wanted is not None and not isinstance(config, wanted):
        raise WeightsError(
            f"This is a model of kind {config.model_type}, not {wanted.model_type}.",
            where=str(folder),
            mend="Name another model, or use the captioner that fits it; `language` takes most.",
        )


def _check_but_videos(chosen: Any) -> Callable[[Any, str, Any], Any]:
    """A processor's check of its parts, which lets the part for videos be absent."""

    def check(self: Any, name: str, part: Any) -> Any:
        if name == "video_processor" and part is None:
            return None
        return chosen.check_argument_for_proper_class(self, name, part)

    return check


def _lacks(folder: Path) -> str:
    """What a model folder lacks to be loaded, or ""."""
    import json

    if not (folder / "config.json").is_file():
        return "config.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "a readable model.safetensors.index.json"
        return next((str(name) for name in sorted(map(str, names)) if not (folder / name).is_file()), "")
    return "" if any(folder.glob("*.safetensors")) else "weights in safetensors"


def _snapshot(name: str, revision: str | None, wanted: Sequence[str], *, local: bool) -> Path | None:
    """A hub model's folder on this disk, or None; unless `local`, its files are downloaded first."""
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted), local_files_only=local))
    except (OSError, ValueError, httpx.HTTPError):
        return None


def _incomplete(folder: Path, missing: str) -> WeightsError:
    pickles = sorted(file.name for file in folder.iterdir() if is_pickle(file))
    if pickles:
        return WeightsError(
            f"This model lacks {missing}; {pickles[0]} could run code when it is opened, so it is not.",
            where=str(folder),
            mend="Get the safetensors version of this model.",
        )
    return WeightsError(f"This model lacks {missing}.", where=str(folder), mend="Copy or download it again, whole.")


def _unloadable(folder: Path, error: Exception) -> WeightsError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return WeightsError(
        f"This model cannot be loaded: {printable(first_line)}",
        where=str(folder),
        mend="Copy or download it again; models that bring their own code are never run.",
    )
