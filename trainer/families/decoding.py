"""Latents -> pixels in little memory: the decoder's large maps lie on the host, and are computed strip by strip."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from trainer.core.memory import give_back, ran_out

_LITTLE: Final = 64 << 20  # bytes that strips take where nobody says how much they may
_FEWEST_ROWS: Final = 4  # fewer would read the rows around them as often as their own


def decode(network: Any, latents: Tensor, most: int | None = None) -> Tensor:
    """What an AutoencoderKL of diffusers makes of latents [B C h w]: pixels [B 3 H W].

    In strips it is the same but for rounding: every normalisation is over the whole picture, and every convolution sees
    the rows around its strip; so there are no seams, as there are where pictures are decoded tile by tile.

    Args:
        network: the autoencoder, on the device of the latents.
        latents: as it left them.
        most: bytes that it may take, those of the network among them; where it needs more, or where memory runs out, it
            goes in strips. None: it is tried at once.
    """
    if most is not None and _is_plain(network):
        room = most - sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
        if _needed(network, latents) > room:
            return _in_strips(network, latents, room)
    try:
        return network.decode(latents).sample
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error) or not _is_plain(network):
            raise
    give_back(latents.device)
    return _in_strips(network, latents, _LITTLE)


def _needed(network: Any, latents: Tensor) -> int:
    """Bytes that plain decoding takes at its peak: in the first block of full size, whose maps are the widest there."""
    widths = network.config.block_out_channels
    scale = 2 ** (len(widths) - 1)
    before, after = widths[min(1, len(widths) - 1)], widths[0]
    return latents.shape[0] * latents.shape[2:].numel() * scale**2 * (3 * before + after) * latents.element_size()


def _is_plain(network: Any) -> bool:
    """Whether the decoder is built as that of every Stable Diffusion."""
    from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D

    return all(isinstance(block, UpDecoderBlock2D) for block in network.decoder.up_blocks)


def _in_strips(network: Any, latents: Tensor, most: int) -> Tensor:
    return torch.cat([_one(network, latent, _Strips(latents.device, most)) for latent in latents.split(1)])


def _one(network: Any, latent: Tensor, strips: "_Strips") -> Tensor:
    decoder = network.decoder
    small = latent if network.post_quant_conv is None else network.post_quant_conv(latent)
    picture = decoder.mid_block(decoder.conv_in(small)).cpu()  # its attention sees all of it; it is small
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            picture = strips.residual(resnet, picture)
        for upsampler in block.upsamplers or ():
            picture = strips.enlarged(upsampler, picture)
    return strips.convolved(decoder.conv_out, picture, _normed(strips, decoder.conv_norm_out, picture)).to(
        latent.device
    )


class _Strips:
    """Works on maps [1 C H W] on the host, as many rows at once on the device as memory is given."""

    def __init__(self, device: torch.device, most: int) -> None:
        self._device, self._most = device, most

    def residual(self, resnet: Any, picture: Tensor) -> Tensor:
        """A residual block without time."""
        inner = self.convolved(resnet.conv1, picture, _normed(self, resnet.norm1, picture))
        shortcut = resnet.conv_shortcut

        def finished(strip: Tensor, first: int, last: int) -> Tensor:
            own = picture[:, :, first:last].to(self._device)
            own = own if shortcut is None else shortcut(own)
            return (own + strip) / resnet.output_scale_factor

        return self.convolved(resnet.conv2, inner, _normed(self, resnet.norm2, inner), finished)

    def enlarged(self, upsampler: Any, picture: Tensor) -> Tensor:
        """Twice as high and wide, by the nearest pixel, and convolved."""
        convolution = upsampler.conv
        _, _, height, width = picture.shape
        made = torch.empty((1, convolution.out_channels, 2 * height, 2 * width), dtype=picture.dtype)
        for first, last in self._rows(4 * width * picture.shape[1], height):
            rows = functional.interpolate(self._with_neighbours(picture, first, last), scale_factor=2.0, mode="nearest")
            rows = _edged(rows[:, :, 1:-1], first == 0, last == height)
            made[:, :, 2 * first : 2 * last] = _convolve(convolution, rows).cpu()
        return made

    def convolved(
        self,
        convolution: Any,
        picture: Tensor,
        prepared: Callable[[Tensor], Tensor],
        finished: Callable[[Tensor, int, int], Tensor] = lambda strip, first, last: strip,
    ) -> Tensor:
        """A convolution of 3 x 3, of what `prepared` makes of each strip; `finished` has its strip and rows last."""
        _, channels, height, width = picture.shape
        made = torch.empty((1, convolution.out_channels, height, width), dtype=picture.dtype)
        for first, last in self._rows(width * (channels + convolution.out_channels), height):
            rows = _edged(prepared(self._with_neighbours(picture, first, last)), first == 0, last == height)
            made[:, :, first:last] = finished(_convolve(convolution, rows), first, last).cpu()
        return made

    def pieces(self, picture: Tensor) -> Iterator[Tensor]:
        """The strips of a map, on the device."""
        for first, last in self._rows(picture.shape[1] * picture.shape[3], picture.shape[2]):
            yield picture[:, :, first:last].to(self._device)

    def _rows(self, numbers: int, height: int) -> Iterator[tuple[int, int]]:
        """First and last row of each strip, whose rows are of so many numbers; three maps of them are there at once."""
        count = max(_FEWEST_ROWS, self._most // (3 * 4 * numbers))
        yield from ((first, min(first + count, height)) for first in range(0, height, count))

    def _with_neighbours(self, picture: Tensor, first: int, last: int) -> Tensor:
        """Rows of a map and one more at both ends, on the device; at the picture's edge the last row once more."""
        rows = picture[:, :, max(0, first - 1) : last + 1].to(self._device)
        above, below = first == 0, last == picture.shape[2]
        return torch.cat([rows[:, :, :1]] * above + [rows] + [rows[:, :, -1:]] * below, dim=2)


def _edged(rows: Tensor, above: bool, below: bool) -> Tensor:
    """Rows with nought in the outermost ones where they lie beyond the picture, as convolutions have it."""
    if above:
        rows[:, :, 0] = 0
    if below:
        rows[:, :, -1] = 0
    return rows


def _convolve(convolution: Any, rows: Tensor) -> Tensor:
    """Of rows that carry their neighbours with them."""
    return functional.conv2d(rows, convolution.weight, convolution.bias, padding=(0, 1))


def _normed(strips: _Strips, norm: Any, picture: Tensor) -> Callable[[Tensor], Tensor]:
    """What group normalisation over the whole `picture`, and SiLU, do to a strip of it."""
    sums = squares = torch.zeros(norm.num_groups, dtype=torch.float64)
    for strip in strips.pieces(picture):
        groups = strip.float().reshape(norm.num_groups, -1)
        # in double only what is added up: not every device has it
        variance, middle = (part.cpu().double() for part in torch.var_mean(groups, dim=1, correction=0))
        sums = sums + groups.shape[1] * middle
        squares = squares + groups.shape[1] * (variance + middle.square())
    count = picture.numel() // norm.num_groups
    mean = sums / count
    deviation = (squares / count - mean.square() + norm.eps).sqrt()
    wide = picture.shape[1] // norm.num_groups
    weight, bias = norm.weight.cpu().double(), norm.bias.cpu().double()
    factor = weight / deviation.repeat_interleave(wide)
    offset = bias - mean.repeat_interleave(wide) * factor

    def normed(strip: Tensor) -> Tensor:
        scale, shift = (column.to(strip.device, torch.float32).view(1, -1, 1, 1) for column in (factor, offset))
        return functional.silu(strip.float() * scale + shift).to(strip.dtype)

    return normed
