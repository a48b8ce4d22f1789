"""Decoding in strips gives the same picture in less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.core.device import Precision
from trainer.families.decoding import decode
from trainer.families.sd1 import Sd1


@pytest.fixture
def network() -> Any:
    """The bundled autoencoder, which is built as the large ones, with attention in the middle or without."""
    source = Sd1().open()
    return source.load("vae", torch.float32)


def latents(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("most", [0, 1, 10**6, 10**7])
@pytest.mark.parametrize("size", [(8, 8), (12, 7)])
def test_strips_make_the_same_picture(network: Any, most: int, size: tuple[int, int]) -> None:
    with torch.no_grad():
        plain, strips = network.decode(latents(*size, 2)).sample, decode(network, latents(*size, 2), most)
    torch.testing.assert_close(strips, plain, atol=2e-5, rtol=1e-4)


def test_what_fits_is_decoded_plainly(network: Any) -> None:
    with torch.no_grad():
        plain = network.decode(latents(8, 8)).sample
        assert torch.equal(decode(network, latents(8, 8)), plain)
        assert torch.equal(decode(network, latents(8, 8), 1 << 40), plain)


def test_memory_that_runs_out_is_survived(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with torch.no_grad():
        plain = network.decode(latents(8, 8)).sample
        monkeypatch.setattr(network, "decode", fail)
        torch.testing.assert_close(decode(network, latents(8, 8)), plain, atol=2e-5, rtol=1e-4)


def test_other_errors_are_not_hidden(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensor) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(network, "decode", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        decode(network, latents(8, 8))


def test_no_map_of_full_size_is_normalised_at_once(network: Any) -> None:
    largest = 0
    plain = torch.nn.functional.conv2d

    def noting(rows: Tensor, *arguments: Any, **named: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, rows.numel())
        return plain(rows, *arguments, **named)

    import trainer.families.decoding as module

    widest = 16 * 16 * network.config.block_out_channels[0]  # of the picture's last map, at least
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(module.functional, "conv2d", noting)
        decode(network, latents(16, 16), 1)
    scale = 2 ** (len(network.config.block_out_channels) - 1)
    assert 0 < largest < widest * scale**2


def test_models_decode_in_strips_too(small_sdxl: Path) -> None:
    from trainer.families.sdxl import Sdxl

    model = Sdxl(weights=str(small_sdxl)).load(Precision.float32, torch.device("cpu"))
    torch.testing.assert_close(
        model.decode_latents(latents(6, 4), 1), model.decode_latents(latents(6, 4)), atol=2e-5, rtol=1e-4
    )
