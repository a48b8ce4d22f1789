"""The finished base as a diffusers folder in float16."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from bundled_base.networks import TOKENIZER_FILES

_READABLE = 0o644


def save_tokenizer_files(source: Path, folder: Path) -> None:
    """Copy the files that older readers expect beside tokenizer.json, the only one transformers 5 writes."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / "tokenizer" / name)


def _forget_origin(fresh: Path) -> None:
    """Take out of the settings where the parts lay on the machine that made them."""
    for path in [fresh / "model_index.json", *fresh.glob("*/config.json")]:
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def export_pipeline(pipeline: StableDiffusionPipeline, tokenizer: Path, folder: Path) -> int:
    """Write the pipeline in float16; return the folder's size in bytes.

    Args:
        pipeline: the finished parts; they are float16 afterwards.
        tokenizer: the folder with vocab.json and merges.txt.
        folder: where to write; a former export there is replaced once the new one is complete.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    save_tokenizer_files(tokenizer, fresh)
    _forget_origin(fresh)
    size = 0
    for path in fresh.rglob("*"):
        if path.is_file():
            path.chmod(_READABLE)
            size += path.stat().st_size
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    return size
