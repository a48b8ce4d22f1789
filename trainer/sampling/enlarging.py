"""Pictures made larger by a network of the user's: ESRGAN and its relatives, through the `spandrel` library."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.core.errors import RecipeError, WeightsError
from trainer.core.files import printable
from trainer.core.log import logger
from trainer.core.memory import give_back, ran_out
from trainer.core.tensors import read_tensors, refused_pickle

_TILE: Final = 512  # pixels of a picture that go through the network at once, each way
_SMALLEST: Final = 64
_EDGE: Final = 32  # pixels around a tile that it sees besides: no seam can be seen then


class Enlarger:
    """A network that makes pictures so many times larger."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Read and checked.

        Args:
            path: a .safetensors file, such as RealESRGAN_x4plus.safetensors.
            device: where it computes.

        Raises:
            RecipeError: the spandrel library is not installed.
            WeightsError: the file is a pickle, broken, or of no network that enlarges and that spandrel knows.
        """
        if path.suffix != ".safetensors":
            raise refused_pickle(path)
        self._network = _loaded(path)
        self._network.to(device).eval()
        self._device, self._tile = device, _TILE
        self.scale = int(self._network.scale)

    def enlarged(self, picture: Image.Image) -> Image.Image:
        """The picture `scale` times as wide and high; tile by tile, in smaller tiles where memory runs out.

        Raises:
            RuntimeError, MemoryError: memory runs out for the smallest tile.
        """
        pixels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)
        while True:
            try:
                larger = self._in_tiles(pixels)
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error) or self._tile <= _SMALLEST:
                    raise
            else:
                return Image.fromarray(larger.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy())
            self._tile //= 2
            give_back(self._device)
            logger.warning("Memory ran out; pictures are enlarged in pieces of %d pixels.", self._tile)

    def _in_tiles(self, pixels: Tensor) -> Tensor:
        """Of [3 H W] in 0 .. 1: [3 sH sW]."""
        _, height, width = pixels.shape
        larger = torch.empty(3, height * self.scale, width * self.scale)
        for top in range(0, height, self._tile):
            for left in range(0, width, self._tile):
                bottom, right = min(top + self._tile, height), min(left + self._tile, width)
                above, before = max(0, top - _EDGE), max(0, left - _EDGE)
                seen = pixels[:, above : bottom + _EDGE, before : right + _EDGE]
                made = self._network(seen[None].to(self._device))[0].float().cpu()
                rows = slice((top - above) * self.scale, (bottom - above) * self.scale)
                columns = slice((left - before) * self.scale, (right - before) * self.scale)
                place = slice(top * self.scale, bottom * self.scale), slice(left * self.scale, right * self.scale)
                larger[:, place[0], place[1]] = made[:, rows, columns]
        return larger


def _loaded(path: Path) -> Any:
    """The descriptor that spandrel makes of the network; its classes share no type that says what we need."""
    where = printable(str(path))
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError, canonicalize_state_dict  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError(
            f"Pictures are enlarged by the spandrel library, which cannot be used here: {error}.",
            where="--upscale",
            mend='Install it: pip install "sd-trainer[upscale]".',
        ) from error
    tensors = read_tensors(path)
    try:
        network = ModelLoader().load_from_state_dict(canonicalize_state_dict(tensors))
    except (UnsupportedModelError, RuntimeError, KeyError, ValueError, AssertionError) as error:
        raise WeightsError(
            "This file is of no network that is known to enlarge pictures.",
            where=where,
            mend="Give a model of the ESRGAN, SwinIR, HAT, DAT, SPAN or a similar kind, as .safetensors.",
        ) from error
    colours = getattr(network, "input_channels", 0) == 3 and getattr(network, "output_channels", 0) == 3
    if not isinstance(network, ImageModelDescriptor) or network.purpose == "FaceSR" or not colours:
        raise WeightsError(
            "This network does something else than enlarge pictures.",
            where=where,
            mend="Give one that is made for super-resolution.",
        )
    return network
