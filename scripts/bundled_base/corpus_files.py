"""How the corpus lies on disk: `entries.json`, `pictures.npy` and, later, `latents.npy` in one folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bundled_base.captions import Entry
from bundled_base.latents import Pictures


def write_corpus(folder: Path, entries: Sequence[Entry], pictures: Pictures) -> None:
    """Write entries and pictures of the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pictures.npy", pictures)
    (folder / "entries.json").write_text(json.dumps([asdict(entry) for entry in entries]), encoding="utf-8")


def read_entries(folder: Path) -> list[Entry]:
    """Return the captions' raw material."""
    raw = json.loads((folder / "entries.json").read_text(encoding="utf-8"))
    return [Entry(item["label"], tuple(item["tags"]), item["style"], item["kind"]) for item in raw]


def read_pictures(folder: Path) -> Pictures:
    """Return all pictures, [N S S 3]."""
    return np.load(folder / "pictures.npy")
