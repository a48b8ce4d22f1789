"""The files of a model folder in the diffusers layout: which of them hold a network, and under which names."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from trainer.core.errors import WeightsError
from trainer.core.tensors import is_pickle, read_header, refused_pickle
from trainer.families.stored_parts import NAMES, Stored
from trainer.weights.original_names import Part

# model.safetensors, diffusion_pytorch_model.fp16.safetensors, model-00001-of-00002.safetensors, and what combines them
_WEIGHTS: Final = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(-\d{5}-of-\d{5})?(?:\.(\w+))?\.safetensors"
)
# diffusers wrote the attention of autoencoders under these names until version 0.13
_OLD_ATTENTION: Final = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_LAYER: Final = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


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
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"This file is no readable JSON: {error}.", where=str(path)) from error
    if not isinstance(content, dict):
        raise WeightsError("This file should hold a JSON object.", where=str(path))
    return content  # pyright: ignore[reportUnknownVariableType]


def weight_files(names: Iterable[str]) -> list[str]:
    """Which files of a network's folder hold its weights.

    The plain ones come first, in one file and then in several; a variant such as fp16 where there is nothing else.
    """
    groups: dict[tuple[str, bool], list[str]] = {}
    others: list[str] = []
    for name in sorted(names):
        if fitting := _WEIGHTS.fullmatch(name):
            variant = fitting[1] or fitting[3] or ""
            groups.setdefault((variant, bool(fitting[2])), []).append(name)
        elif name.endswith(".safetensors"):
            others.append(name)
    ranks = [("", False), ("", True), ("fp16", False), ("fp16", True), *sorted(groups)]
    chosen = next((groups[rank] for rank in ranks if rank in groups), None)
    if chosen is not None:
        return chosen
    return others if len(others) == 1 else []


def stored_tensors(folder: Path, part: Part) -> dict[str, Stored]:
    """Where each tensor of a network lies, by its canonical name.

    Args:
        folder: of the network, with its weights.
        part: which network it is.

    Raises:
        WeightsError: there are no weights, or only pickles, or a file is broken.
    """
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    chosen = weight_files(names)
    if not chosen:
        pickles = sorted(name for name in names if is_pickle(Path(name)))
        if pickles:
            raise refused_pickle(folder / pickles[0])
        raise WeightsError(
            f"This model has no {NAMES[part]}.", where=str(folder), mend="Download the model again, whole."
        )
    return dict(_tensors(folder, chosen, part))


def canonical(name: str, part: Part) -> str:
    """Our one name of a tensor in a folder, whichever version of diffusers or transformers wrote it."""
    if part == "vae" and (old := _OLD_LAYER.fullmatch(name)):
        return f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}"
    if part.startswith("text") and not name.startswith(("text_model.", "text_projection.")):
        return f"text_model.{name}"
    return name


def _tensors(folder: Path, files: Iterable[str], part: Part) -> Iterator[tuple[str, Stored]]:
    for name in files:
        path = folder / name
        for key, facts in read_header(path).tensors.items():
            yield canonical(key, part), Stored(path, key, facts)
