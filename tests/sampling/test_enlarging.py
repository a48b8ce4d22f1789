"""Pictures made larger by a small network of the ESRGAN kind, through spandrel itself."""

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.core.errors import RecipeError, WeightsError
from trainer.core.tensors import write_tensors
from trainer.sampling.enlarging import Enlarger

CPU = torch.device("cpu")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_a_picture_becomes_twice_as_large_without_seams(esrgan: Path) -> None:
    enlarger = Enlarger(esrgan, CPU)
    picture = noise(90, 70)
    whole = enlarger.enlarged(picture)
    assert whole.size == (180, 140)
    enlarger._tile = 32  # pyright: ignore[reportPrivateUsage]
    pieces = enlarger.enlarged(picture)
    assert np.abs(np.asarray(whole, dtype=int) - np.asarray(pieces, dtype=int)).max() <= 1


def test_where_memory_runs_out_pieces_are_smaller(esrgan: Path) -> None:
    enlarger = Enlarger(esrgan, CPU)
    network = enlarger._network  # pyright: ignore[reportPrivateUsage]

    def little(seen: torch.Tensor) -> torch.Tensor:
        if seen.shape[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return network(seen)

    with patch.object(enlarger, "_network", little):
        assert enlarger.enlarged(noise(300, 20)).size == (600, 40)


def test_other_files_are_refused(spandrel: None, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tensors(other, {"a": torch.ones(2)})
    with pytest.raises(WeightsError, match="no network that is known"):
        Enlarger(other, CPU)
    pickled = tmp_path / "x4.pth"
    torch.save({"a": torch.ones(2)}, pickled)
    with pytest.raises(WeightsError):
        Enlarger(pickled, CPU)


def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)})
    with patch.dict(sys.modules, {"spandrel": None}), pytest.raises(RecipeError, match="spandrel"):
        Enlarger(path, CPU)
