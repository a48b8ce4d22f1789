"""The layers of a loaded network, by the names and in the shapes that files have for them."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from trainer.core.errors import WeightsError
from trainer.weights.names import Naming


def live_layers(network: nn.Module, part: str, naming: Naming) -> Mapping[str, str]:
    """The layers of a network at which an adapter may sit: canonical name -> path inside the network.

    Args:
        network: of diffusers or transformers, whatever their version.
        part: which it is: unet, text_encoder, text_encoder_2.
        naming: of the family.
    """
    found: dict[str, str] = {}
    for path, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            try:
                found[naming.canonical(f"{part}.{path}")] = path
            except WeightsError:  # the first convolution, the embedding of time: no adapter sits there
                continue
    return found


def in_shape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor in `shape`, where the two differ in nothing but trailing ones; and else as it is.

    The projections around Stable Diffusion 2's transformer blocks are matrices in diffusers, and convolutions of one
    pixel in kohya's files.
    """
    same_numbers = _without_ones(tensor.shape) == _without_ones(shape)
    return tensor.reshape(tuple(shape)) if same_numbers else tensor


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """[out in 1 1] as [out in]; a matrix stays one."""
    return tuple(shape[:2]) if all(side == 1 for side in shape[2:]) else tuple(shape)
