"""Weights that wait on the host: the same bits, one block and the next at a time, in the order of use."""

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.adapters.lora import Lora
from trainer.core.device import Precision
from trainer.core.seeds import Seeds
from trainer.families import offloading
from trainer.families.model import DiffusionModel
from trainer.families.offloading import StreamedBlocks, blocks_of, blocks_to_stream
from trainer.families.sd1 import Sd1
from trainer.families.sdxl import Sdxl
from trainer.sampling.generate import generate
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Ddim

CPU = torch.device("cpu")


class Journeys:
    """What was sent to the device, in order, and what of it lives there at the same time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.sent: list[int] = []  # addresses on the host
        self.most = self.living = 0
        plain = offloading.Lane.send

        def send(lane: Any, host: Tensor) -> Any:
            arriving = plain(lane, host)
            self.sent.append(host.data_ptr())
            self.sizes.append(host.numel())
            self.living += host.numel()
            self.most = max(self.most, self.living)
            weakref.finalize(arriving.bytes.untyped_storage(), self._gone, host.numel())
            return arriving

        monkeypatch.setattr(offloading.Lane, "send", send)

    def _gone(self, size: int) -> None:
        self.living -= size


def a_model(folder: Path, resident: float, *, family: Any = Sd1, every: int | None = None, **more: Any) -> Any:
    model: DiffusionModel = family(weights=str(folder), resident=resident, **more).load(Precision.float32, CPU)
    trainable = Lora(rank=2, dropout=0.2, layers=("attention", "convolution")).attach(model, Seeds(0))
    chance = torch.Generator().manual_seed(1)
    for parameter in trainable.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=chance)
    if every is not None:
        model.use_gradient_checkpointing(every)
    model.denoiser.train()
    return model, trainable


def gradients(model: DiffusionModel, trainable: Any) -> list[Tensor]:
    words = model.encode_words(["red", "blue"])
    torch.manual_seed(5)
    predicted = model.predict(torch.randn(2, 4, 4, 4), torch.tensor([3, 900]), words)
    return [*torch.autograd.grad(predicted.square().sum(), list(trainable.parameters())), predicted.detach()]


@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.parametrize("resident", [0.0, 0.6])
def test_gradients_are_the_same_bits(small_model: Path, resident: float, every: int | None) -> None:
    plain, streamed = a_model(small_model, 1.0), a_model(small_model, resident, every=every)
    for _ in range(3):  # the order of the blocks is learned in the first step
        assert all(torch.equal(a, b) for a, b in zip(gradients(*plain), gradients(*streamed), strict=True))


def test_quantised_weights_stream_too(small_sdxl: Path) -> None:
    for form in ("int8", "float8", "nf4"):
        plain, streamed = (a_model(small_sdxl, share, family=Sdxl, quantize=form) for share in (1.0, 0.0))
        assert all(torch.equal(a, b) for a, b in zip(gradients(*plain), gradients(*streamed), strict=True))


def test_pictures_are_the_same_and_training_goes_on_after_them(small_model: Path) -> None:
    plain, streamed = a_model(small_model, 1.0), a_model(small_model, 0.0)
    asked = [Prompt(text="red")]
    pictures = [generate(one[0], asked, Ddim(), DrawSettings(steps=3), (16, 16))[0] for one in (plain, streamed)]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert all(torch.equal(a, b) for a, b in zip(gradients(*plain), gradients(*streamed), strict=True))


def test_only_one_block_and_the_next_are_on_the_device(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journeys = Journeys(monkeypatch)
    model, trainable = a_model(small_model, 0.0)
    for _ in range(3):
        gradients(model, trainable)
        gc.collect()
        assert journeys.living == 0
    assert len(journeys.sizes) > 20
    # the block, the one that is on its way, and in the backward pass the one whose gradient is not done
    assert journeys.most <= sum(sorted(set(journeys.sizes))[-3:]) + 2 * max(journeys.sizes)
    assert journeys.most < sum(size for size, _ in {(s, a) for s, a in zip(journeys.sizes, journeys.sent, strict=True)})


def test_blocks_come_in_order_and_back_in_reverse(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journeys = Journeys(monkeypatch)
    model, trainable = a_model(small_model, 0.0)
    gradients(model, trainable)
    gradients(model, trainable)
    journeys.sent.clear()
    gradients(model, trainable)
    forward = list(dict.fromkeys(journeys.sent))
    count = len(forward)
    assert journeys.sent[:count] == forward
    # the last one stays for the way back
    assert journeys.sent[count:] == forward[-2::-1]


def test_the_next_block_sets_out_before_this_one_is_computed(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journeys = Journeys(monkeypatch)
    model, trainable = a_model(small_model, 0.0)
    gradients(model, trainable)
    seen: list[int] = []
    blocks = blocks_of(model.denoiser)

    def note(*_: object) -> None:
        seen.append(len(journeys.sent))

    for block in blocks:
        first = next(module for module in block.modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm)))
        first.register_forward_pre_hook(note)
    journeys.sent.clear()
    with torch.no_grad():
        model.predict(torch.ones(1, 4, 4, 4), torch.tensor([5]), model.encode_words(["red"]))
    # while block k (from 0) is computed, k + 2 have set out; at the end there is no next one
    assert seen == [*range(2, len(blocks) + 1), len(blocks)]


@pytest.mark.parametrize("resident", [0.2, 0.5, 0.8])
def test_the_share_that_stays_is_the_one_asked_for(resident: float) -> None:
    network = Sd1().load(Precision.float32, CPU).denoiser
    whole = sum(parameter.numel() * 4 for parameter in network.parameters())
    chosen = blocks_to_stream(network, resident)
    waiting = StreamedBlocks(chosen, CPU).host_bytes
    largest = max(sum(p.numel() * 4 for p in block.parameters()) for block in chosen)
    assert abs(whole * (1 - resident) - waiting) <= largest
    stays = sum(p.untyped_storage().nbytes() for p in network.parameters())
    assert stays <= whole - waiting + 100_000


def test_streamed_blocks_lie_between_those_that_stay(small_sdxl: Path) -> None:
    network = Sdxl(weights=str(small_sdxl)).load(Precision.float32, CPU).denoiser
    blocks = blocks_of(network)
    chosen = set(blocks_to_stream(network, 0.5))
    places = [block in chosen for block in blocks]
    assert True in places[: len(places) // 2]
    assert True in places[len(places) // 2 :]
    assert places.count(False) > 1


def test_what_is_trained_stays_on_the_device(small_model: Path) -> None:
    model, trainable = a_model(small_model, 0.0)
    addresses = [parameter.data_ptr() for parameter in trainable.parameters()]
    gradients(model, trainable)
    assert addresses == [parameter.data_ptr() for parameter in trainable.parameters()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_gradients_are_the_same_and_memory_is_less() -> None:
    peaks: list[int] = []
    grads: list[list[Tensor]] = []
    for resident in (1.0, 0.0):
        model = Sd1(resident=resident).load(Precision.float32, torch.device("cuda"))
        trainable = Lora(rank=2).attach(model, Seeds(0))
        model.use_gradient_checkpointing()
        model.denoiser.train()
        words = model.encode_words(["red", "blue"])
        model.release_encoders()
        noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).cuda()
        found: Sequence[Tensor] = ()
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats()
            loss = model.predict(noisy, torch.tensor([3, 900], device="cuda"), words).square().sum()
            found = torch.autograd.grad(loss, list(trainable.parameters()))
        peaks.append(torch.cuda.max_memory_allocated())
        grads.append([gradient.cpu() for gradient in found])
        del model, trainable, found, words
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert peaks[1] < peaks[0]
