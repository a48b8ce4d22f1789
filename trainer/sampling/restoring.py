"""Faces in pictures made better by a network of the user's: GFPGAN, RestoreFormer, through the `spandrel` library."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trainer.core.log import logger
from trainer.core.memory import give_back, ran_out
from trainer.sampling.faces import FaceFinder, Square, framed
from trainer.sampling.picture_networks import open_network

_SIDE: Final = 512  # pixels, each way, of what these networks take and give
_FEATHER: Final = 1 / 8  # of a frame's side, at each border: there the picture passes into what was restored

Pixels = NDArray[np.uint8]


class FaceRestorer:
    """A network that makes faces anew, and what finds them; counts what it did."""

    def __init__(self, path: Path, device: torch.device, option: str = "--faces") -> None:
        """Read and checked.

        Args:
            path: a .safetensors file, such as GFPGANv1.4.safetensors.
            device: where it computes.
            option: how the command line names the file.

        Raises:
            RecipeError: the spandrel or the OpenCV library is not installed.
            WeightsError: the file is a pickle, broken, or of no network that restores faces and that spandrel knows.
        """
        self._finder = FaceFinder(option)
        self._network = open_network(path, device, "restore faces", option)
        self.done = 0  # faces that were restored
        self.large = 0  # faces that were left alone

    def restored(self, picture: Image.Image) -> Image.Image:
        """The picture in RGB with its faces restored, each in its frame, which passes smoothly into the rest.

        A face whose frame is larger than what the network gives is left alone: it would come back blurred.

        Raises:
            RuntimeError, MemoryError: memory runs out, on the processor too.
        """
        frames = [framed(face) for face in self._finder.faces(picture)]
        small = [frame for frame in frames if frame.side <= _SIDE]
        self.large += len(frames) - len(small)
        for frame in frames:
            if frame.side > _SIDE:
                what = (
                    "A face is left alone: its frame of %d pixels is larger than the network's %d, which would blur it."
                )
                logger.info(what, frame.side, _SIDE)
        pixels = np.array(picture.convert("RGB"))
        for frame in small:  # where frames overlap, the later one sees what the earlier one became
            paste(pixels, self._made(cut(pixels, frame)), frame)
        self.done += len(small)
        return Image.fromarray(pixels)

    def told(self) -> str:
        """What was done so far, as a sentence."""
        if not self.done and not self.large:
            return "No face was found."
        left = f"; left alone, since larger than the network's {_SIDE} pixels: {self.large}" if self.large else ""
        return f"Faces restored: {self.done}{left}."

    def _made(self, face: Pixels) -> Pixels:
        """The network's face [side side 3] for one [side side 3]."""
        seen = np.asarray(Image.fromarray(face).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float32)
        asked = torch.from_numpy(seen / 255).permute(2, 0, 1)
        made = self._asked(asked).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return np.asarray(Image.fromarray(made).resize(face.shape[1::-1], Image.Resampling.LANCZOS))

    def _asked(self, face: torch.Tensor) -> torch.Tensor:
        """The network's answer; it moves to the processor where a device's memory is too small for it."""
        device = self._network.device
        try:
            return self._network(face)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error) or device.type == "cpu":
                raise
        self._network.move(torch.device("cpu"))
        give_back(device)
        logger.warning("Memory ran out; faces are restored on the processor from now on, which is slower.")
        return self._network(face)


def cut(pixels: Pixels, frame: Square) -> Pixels:
    """What lies in the frame, [side side 3]; beyond the borders of the picture [H W 3] these go on."""
    height, width, _ = pixels.shape
    rows = np.arange(frame.top, frame.top + frame.side).clip(0, height - 1)
    columns = np.arange(frame.left, frame.left + frame.side).clip(0, width - 1)
    return pixels[rows[:, None], columns]


def paste(pixels: Pixels, face: Pixels, frame: Square) -> None:
    """Put a face [side side 3] into its frame, all of it in the middle and nothing at the frame's border.

    Args:
        pixels: [H W 3]; is changed.
        face: what shall be seen there.
        frame: may lie partly outside.
    """
    height, width, _ = pixels.shape
    top, left = max(0, frame.top), max(0, frame.left)
    bottom, right = min(height, frame.top + frame.side), min(width, frame.left + frame.side)
    if top >= bottom or left >= right:
        return
    rows, columns = slice(top - frame.top, bottom - frame.top), slice(left - frame.left, right - frame.left)
    share = feather(frame.side)[rows, columns, None]
    below = pixels[top:bottom, left:right].astype(np.float32)
    mixed = below + share * (face[rows, columns].astype(np.float32) - below)
    pixels[top:bottom, left:right] = np.rint(mixed).astype(np.uint8)


def feather(side: int) -> NDArray[np.float32]:
    """[side side] in 0 .. 1: one in the middle, smoothly nothing at the borders."""
    places = np.arange(side, dtype=np.float32) + 0.5
    near = np.clip(np.minimum(places, side - places) / (_FEATHER * side), 0, 1)
    ramp = near * near * (3 - 2 * near)
    return (ramp[:, None] * ramp).astype(np.float32)
