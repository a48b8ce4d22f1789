"""Networks of the user's that make pictures better, opened by the `spandrel` library; their files can run no code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from trainer.core.errors import RecipeError, WeightsError
from trainer.core.files import printable
from trainer.core.tensors import first_non_finite, is_pickle, read_tensors, refused_pickle

Work = Literal["enlarge pictures", "restore faces"]
"""What a network is asked to do, as messages say it."""

_KINDS: Final[dict[Work, str]] = {
    "enlarge pictures": "a model of the ESRGAN, SwinIR, HAT, DAT, SPAN or a similar kind",
    "restore faces": "a GFPGAN or a RestoreFormer",
}
# What spandrel, and torch below it, raise for tensors that do not fit together; an `except Exception` would hide ours.
_NO_FIT: Final = (RuntimeError, LookupError, ValueError, AssertionError, TypeError, AttributeError, ArithmeticError)


@dataclass(eq=False, slots=True)
class PictureNetwork:
    """A network from pictures to pictures, on its device."""

    scale: int  # how many times as wide and high the result is
    device: torch.device
    _network: Any  # spandrel's descriptor; its classes share no type that says what we need
    _where: str

    def __call__(self, pixels: Tensor) -> Tensor:
        """What the network makes of one picture; the same each time, although GFPGAN draws noise for its details.

        Args:
            pixels: [3 H W], 0 .. 1.

        Returns:
            [3 sH sW], 0 .. 1, float32, on the CPU.

        Raises:
            WeightsError: the result is not finite.
            RuntimeError, MemoryError: memory runs out.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            made: Tensor = self._network(pixels[None].to(self.device))[0].float().cpu()
        if not bool(torch.isfinite(made).all()):
            raise WeightsError("This network makes numbers that are not finite.", where=self._where, mend=_AGAIN)
        return made

    def move(self, device: torch.device) -> None:
        """Let it compute elsewhere from now on."""
        self._network.to(device)
        self.device = device


_AGAIN: Final = "Download the file again, or use another network."


def open_network(path: Path, device: torch.device, work: Work, option: str) -> PictureNetwork:
    """Read and checked; it computes in float32.

    Args:
        path: a .safetensors file.
        device: where it computes.
        work: what it is asked to do.
        option: how the command line names the file.

    Raises:
        RecipeError: the spandrel library is not installed.
        WeightsError: the file is a pickle, broken, or of no network that spandrel knows, or of one for something else.
    """
    where = printable(str(path))
    if is_pickle(path):
        raise refused_pickle(path)
    try:
        from spandrel import ModelLoader, UnsupportedModelError, canonicalize_state_dict  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError(
            f"Networks that {work} are opened by the spandrel library, which cannot be used here: {error}.",
            where=option,
            mend='Install it: pip install "sd-trainer[upscale]".',
        ) from error
    tensors = read_tensors(path)
    if (name := first_non_finite(tensors)) is not None:
        raise WeightsError(
            f"This file holds NaN or infinity: {printable(name[:200])}.", where=where, mend="Download it again."
        )
    try:
        network = ModelLoader().load_from_state_dict(canonicalize_state_dict(tensors))
    except (UnsupportedModelError, *_NO_FIT) as error:
        raise WeightsError(
            f"This file is of no network that is known to {work}.",
            where=where,
            mend=f"Give {_KINDS[work]}, as .safetensors.",
        ) from error
    _check_purpose(network, work, where, option)
    network.to(device).eval()
    return PictureNetwork(int(network.scale), device, network, where)


def _check_purpose(network: Any, work: Work, where: str, option: str) -> None:
    """Make sure that it does what it is asked to do; from pictures of three colours to such pictures."""
    from spandrel import ImageModelDescriptor  # pyright: ignore[reportMissingImports]

    plain = isinstance(network, ImageModelDescriptor) and network.input_channels == network.output_channels == 3
    faces = plain and network.purpose == "FaceSR"
    if plain and faces == (work == "restore faces"):
        return
    kind = printable(str(network.architecture.id))
    what = "restores faces" if faces else "changes whole pictures" if plain else "does something else"
    raise WeightsError(
        f"This network ({kind}) {what}; it is not made to {work}.",
        where=where,
        mend=f"{option} takes {_KINDS[work]}." + (" This one is for --faces." if faces else ""),
    )
