"""Pictures made larger by a network of the user's: ESRGAN and its relatives, through the `spandrel` library."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.core.log import logger
from trainer.core.memory import give_back, ran_out
from trainer.sampling.picture_networks import open_network

_TILE: Final = 512  # pixels of a picture that go through the network at once, each way
_SMALLEST: Final = 64
_EDGE: Final = 32  # pixels around a tile that it sees besides: no seam can be seen then


class Enlarger:
    """A network that makes pictures so many times larger."""

    def __init__(self, path: Path, device: torch.device, option: str = "--upscale") -> None:
        """Read and checked.

        Args:
            path: a .safetensors file, such as RealESRGAN_x4plus.safetensors.
            device: where it computes.
            option: how the command line names the file.

        Raises:
            RecipeError: the spandrel library is not installed.
            WeightsError: the file is a pickle, broken, or of no network that enlarges and that spandrel knows.
        """
        self._network = open_network(path, device, "enlarge pictures", option)
        self._device, self._tile = device, _TILE
        self.scale = self._network.scale

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
                return Image.fromarray(larger.numpy())
            self._tile //= 2
            give_back(self._device)
            logger.warning("Memory ran out; pictures are enlarged in pieces of %d pixels.", self._tile)

    def _in_tiles(self, pixels: Tensor) -> Tensor:
        """Of [3 H W] in 0 .. 1: [sH sW 3] in 0 .. 255."""
        _, height, width = pixels.shape
        larger = torch.empty(height * self.scale, width * self.scale, 3, dtype=torch.uint8)
        for top in range(0, height, self._tile):
            for left in range(0, width, self._tile):
                bottom, right = min(top + self._tile, height), min(left + self._tile, width)
                above, before = max(0, top - _EDGE), max(0, left - _EDGE)
                seen = pixels[:, above : bottom + _EDGE, before : right + _EDGE]
                made = self._network(seen)
                rows = slice((top - above) * self.scale, (bottom - above) * self.scale)
                columns = slice((left - before) * self.scale, (right - before) * self.scale)
                place = slice(top * self.scale, bottom * self.scale), slice(left * self.scale, right * self.scale)
                larger[place] = made[:, rows, columns].mul(255).round().to(torch.uint8).permute(1, 2, 0)
        return larger
