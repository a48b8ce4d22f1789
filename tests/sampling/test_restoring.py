"""Faces restored by a thin network of the real kind, and pasted so that nobody sees where."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.core.errors import RecipeError, WeightsError
from trainer.core.tensors import read_tensors, write_tensors
from trainer.sampling.enlarging import Enlarger
from trainer.sampling.faces import Square, framed
from trainer.sampling.picture_networks import PictureNetwork, open_network
from trainer.sampling.restoring import FaceRestorer, cut, feather, paste

CPU = torch.device("cpu")
Portrait = Callable[[int], Image.Image]


@dataclass
class Negative:
    """A network that turns colours round."""

    device: torch.device = CPU
    seen: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    memory: bool = True

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        if not self.memory and self.device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.seen.append(tuple(pixels.shape))
        return 1 - pixels

    def move(self, device: torch.device) -> None:
        self.device = device


@pytest.fixture
def restorer(restoreformer: Path) -> FaceRestorer:
    pytest.importorskip("cv2")
    return FaceRestorer(restoreformer, CPU)


def test_a_real_network_changes_the_face_alone_and_each_time_alike(restorer: FaceRestorer, portrait: Portrait) -> None:
    picture = Image.new("RGB", (400, 300), (120, 130, 140))
    picture.paste(portrait(160), (20, 60))
    before = torch.random.get_rng_state()
    restored = restorer.restored(picture)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (restorer.done, restorer.large, restorer.told()) == (1, 0, "Faces restored: 1.")
    changed = np.abs(np.asarray(restored, dtype=int) - np.asarray(picture, dtype=int)).max(2)
    (face,) = restorer._finder.faces(picture)  # pyright: ignore[reportPrivateUsage]
    frame = framed(face)
    rows, columns = slice(frame.top, frame.top + frame.side), slice(frame.left, frame.left + frame.side)
    assert changed[rows, columns].mean() > 20
    changed[rows, columns] = 0
    assert not changed.any()
    assert np.array_equal(np.asarray(restorer.restored(picture)), np.asarray(restored))


def test_in_the_middle_of_a_frame_is_what_the_network_made(restorer: FaceRestorer, portrait: Portrait) -> None:
    picture, network = portrait(256), Negative()
    with patch.object(restorer, "_network", network):
        restored = np.asarray(restorer.restored(picture), dtype=int)
    assert network.seen == [(3, 512, 512)]
    (face,) = restorer._finder.faces(picture)  # pyright: ignore[reportPrivateUsage]
    inner = slice(face.top, face.top + face.side), slice(face.left, face.left + face.side)
    given = np.asarray(picture, dtype=int)
    assert np.abs(255 - given[inner] - restored[inner]).max() <= 6  # 250 pixels to 512 and back
    frame = framed(face)
    assert frame.top < 0  # the frame is larger than the picture
    assert np.abs(restored - given)[:, -1].max() <= 40  # and ends at the picture's right border: still mixed


def test_pasting_mixes_by_the_feather_and_leaves_the_rest() -> None:
    pixels = np.full((60, 80, 3), 40, np.uint8)
    frame = Square(-10, 30, 50)  # out of the picture to the left and below
    paste(pixels, np.full((50, 50, 3), 240, np.uint8), frame)
    share = feather(50)
    assert share[25, 25] == 1
    assert share[0, 25] < 0.03
    assert np.array_equal(share, share.T)
    assert np.array_equal(share, share[::-1, ::-1])
    expected = np.full((60, 80), 40.0)
    expected[30:60, 0:40] += 200 * share[0:30, 10:50]
    assert np.array_equal(pixels, np.rint(expected)[..., None].repeat(3, 2))
    outside = pixels.copy()
    paste(outside, np.zeros((50, 50, 3), np.uint8), Square(200, 0, 50))
    assert np.array_equal(outside, pixels)


def test_beyond_its_borders_a_picture_goes_on() -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    taken = cut(pixels, Square(-2, 1, 6))
    assert taken.shape == (6, 6, 3)
    assert np.array_equal(taken[:3, 2:], pixels[1:4, :4])
    assert np.array_equal(taken[:3, 0], pixels[1:4, 0])
    assert np.array_equal(taken[5, 2:], pixels[3, :4])


def test_a_face_larger_than_the_network_is_left_alone(
    restorer: FaceRestorer, portrait: Portrait, caplog: pytest.LogCaptureFixture
) -> None:
    picture, network = portrait(800), Negative()
    with patch.object(restorer, "_network", network), caplog.at_level(logging.INFO):
        assert np.array_equal(np.asarray(restorer.restored(picture)), np.asarray(picture))
    assert network.seen == []
    assert "is left alone" in caplog.text
    assert restorer.told() == "Faces restored: 0; left alone, since larger than the network's 512 pixels: 1."


def test_a_picture_without_a_face_stays_as_it_is(restorer: FaceRestorer) -> None:
    picture = Image.linear_gradient("L")
    assert np.array_equal(np.asarray(restorer.restored(picture)), np.asarray(picture.convert("RGB")))
    assert restorer.told() == "No face was found."


def test_where_memory_runs_out_the_processor_goes_on(
    restorer: FaceRestorer, portrait: Portrait, caplog: pytest.LogCaptureFixture
) -> None:
    network = Negative(torch.device("cuda"), memory=False)
    with patch.object(restorer, "_network", network):
        restorer.restored(portrait(200))
        assert network.seen == [(3, 512, 512)]
        assert network.device == CPU
        assert "on the processor" in caplog.text
        with patch.object(Negative, "__call__", side_effect=MemoryError), pytest.raises(MemoryError):
            restorer.restored(portrait(200))


def test_each_option_takes_its_own_kind(esrgan: Path, restoreformer: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(WeightsError, match=r"ESRGAN. changes whole pictures; it is not made to restore") as error:
        FaceRestorer(esrgan, CPU)
    assert "--faces takes a GFPGAN or a RestoreFormer" in (error.value.mend or "")
    with pytest.raises(WeightsError, match=r"RestoreFormer. restores faces; it is not made to enlarge") as error:
        Enlarger(restoreformer, CPU, "--with")
    assert "--with takes a model of the ESRGAN" in (error.value.mend or "")
    assert "This one is for --faces." in (error.value.mend or "")
    pickled = tmp_path / "GFPGANv1.4.pth"
    torch.save({"a": torch.ones(2)}, pickled)
    with pytest.raises(WeightsError, match="can run code"):
        FaceRestorer(pickled, CPU)
    other = tmp_path / "other.safetensors"
    write_tensors(other, {"a": torch.ones(2)})
    with pytest.raises(WeightsError, match="no network that is known to restore faces"):
        FaceRestorer(other, CPU)
    with patch.dict(sys.modules, {"spandrel": None}), pytest.raises(RecipeError, match="spandrel"):
        FaceRestorer(restoreformer, CPU)


def test_numbers_that_are_not_finite_are_told(esrgan: Path, tmp_path: Path) -> None:
    tensors = read_tensors(esrgan)
    name = next(iter(tensors))
    broken = tmp_path / "nan.safetensors"
    write_tensors(broken, tensors | {name: torch.full_like(tensors[name], float("nan"))})
    with pytest.raises(WeightsError, match="NaN or infinity"):
        open_network(broken, CPU, "enlarge pictures", "--upscale")
    network = PictureNetwork(1, CPU, lambda pixels: pixels / 0, "x.safetensors")  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(WeightsError, match="not finite"):
        network(torch.zeros(3, 4, 4))


def test_a_network_that_draws_noise_gives_the_same_each_time() -> None:
    network = PictureNetwork(1, CPU, torch.rand_like, "x.safetensors")
    torch.manual_seed(1)
    first = network(torch.zeros(3, 4, 4))
    torch.manual_seed(2)
    assert torch.equal(network(torch.zeros(3, 4, 4)), first)
