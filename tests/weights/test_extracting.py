from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typing_extensions import override

from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.progress import Phases, Silence
from trainer.core.tensor_files import planned
from trainer.weights.extracting import Extraction, extract
from trainer.weights.low_rank import FixedRank, RankRule, RetainedEnergy
from trainer.weights.names import SDXL_NAMES
from trainer.weights.stored_model import StoredModel, layers_of

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONVOLUTION = "unet.down_blocks.0.resnets.0.conv1"
WORDS = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
SHAPES: Mapping[str, tuple[int, ...]] = {
    f"{LINEAR}.weight": (30, 20),
    f"{LINEAR}.bias": (30,),
    f"{CONVOLUTION}.weight": (16, 6, 3, 3),
    f"{WORDS}.weight": (24, 18),
    "unet.conv_in.weight": (8, 4, 3, 3),
    "text_encoder_2.text_model.embeddings.token_embedding.weight": (40, 18),
    "vae.decoder.conv_in.weight": (8, 4, 3, 3),
}


class Memory(StoredModel):
    """A model whose file is a dictionary."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.where = "memory"
        self.held = tensors
        self.tensors = {name: planned(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}

    @override
    def read(self, name: str) -> Tensor:
        return self.held[name]


class Told(Phases):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[tuple[int, int]] = []

    @override
    def show(self, title: str, total: int, speed: object, facts: str) -> None:
        self.counts.append((getattr(speed, "done"), total))  # noqa: B009 - the type is private to the room


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_base(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: some(*shape, seed=number).to(dtype) for number, (name, shape) in enumerate(SHAPES.items())}


def planted(rank: int, *names: str, size: float = 0.01) -> dict[str, Tensor]:
    """Changes of a given rank."""
    found: dict[str, Tensor] = {}
    for number, name in enumerate(names):
        out, *inner = SHAPES[name]
        flat = int(torch.Size(inner).numel())
        found[name] = size * (some(out, rank, seed=number + 70) @ some(rank, flat, seed=number + 80)).reshape(
            out, *inner
        )
    return found


def difference(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], rule: RankRule) -> Extraction:
    return extract(Memory(base), Memory(tuned), SDXL_NAMES, rule, torch.float32, Silence())


@settings(max_examples=15)
@given(st.integers(1, 6))
def test_a_planted_difference_is_given_back(rank: int) -> None:
    changes = planted(rank, f"{LINEAR}.weight", f"{CONVOLUTION}.weight", f"{WORDS}.weight")
    base = a_base()
    tuned = base | {name: base[name] + change for name, change in changes.items()}
    found = difference(base, tuned, FixedRank(rank))
    found.state.check()
    assert found.state.layers() == sorted((LINEAR, CONVOLUTION, WORDS))
    for name, change in changes.items():
        layer = name.removesuffix(".weight")
        assert found.state.rank(layer) == rank
        assert found.state.scale(layer) == 1.0
        back = found.state.change(layer)
        assert back.shape == change.shape
        assert float((back - change).norm() / change.norm()) < 2e-5  # what float32 keeps of base + change - base
    assert found.fit.relative_error < 2e-5
    assert found.beyond == ()


def test_the_result_is_the_truncated_decomposition_and_its_error_is_told() -> None:
    base = a_base()
    name = f"{CONVOLUTION}.weight"
    tuned = base | {name: base[name] + some(*SHAPES[name], seed=5)}
    found = difference(base, tuned, FixedRank(3))
    values = torch.linalg.svdvals((tuned[name] - base[name]).flatten(1).double())
    assert abs(found.fit.relative_error - float(values[3:].norm() / values.norm())) < 1e-5
    assert found.fit.worst(1)[0].layer == CONVOLUTION
    assert found.fit.parts == {"unet": found.fit.relative_error}


def test_energy_gives_each_layer_what_it_needs() -> None:
    base = a_base()
    low, high = planted(1, f"{LINEAR}.weight"), planted(5, f"{WORDS}.weight")
    tuned = base | {name: base[name] + change for name, change in (low | high).items()}
    state = difference(base, tuned, RetainedEnergy(0.999)).state
    assert state.rank(LINEAR) == 1
    assert state.rank(WORDS) in {3, 4, 5}


def test_what_does_not_differ_and_what_no_lora_holds_are_told() -> None:
    base = a_base()
    others = ("unet.conv_in.weight", f"{LINEAR}.bias", "text_encoder_2.text_model.embeddings.token_embedding.weight")
    tuned = base | {name: base[name] + 1 for name in (*others, f"{WORDS}.weight", "vae.decoder.conv_in.weight")}
    found = difference(base, tuned, FixedRank(2))
    assert found.state.layers() == [WORDS]
    assert sorted(found.beyond) == sorted(others)  # the autoencoder is nobody's
    assert sorted(found.fit.unchanged) == sorted((LINEAR, CONVOLUTION))
    assert sorted(found.as_json()["beyond"]) == sorted(others)


def test_one_tensor_of_each_model_is_read_at_a_time_and_progress_is_told() -> None:
    class Careful(Memory):
        reads: list[str]

        @override
        def read(self, name: str) -> Tensor:
            log.append((self.where, name))
            return super().read(name)

    log: list[tuple[str, str]] = []
    base = a_base()
    one, two = Careful(base), Careful(base | {f"{WORDS}.weight": base[f"{WORDS}.weight"] + 1})
    one.where, two.where = "one", "two"
    told = Told()
    extract(one, two, SDXL_NAMES, FixedRank(1), torch.float32, told)
    assert [where for where, _ in log] == ["one", "two"] * 6
    assert all(log[place][1] == log[place + 1][1] for place in range(0, len(log), 2))
    assert told.counts == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("coarse", [torch.float16, torch.bfloat16])
def test_a_copy_in_a_coarser_format_has_learned_nothing(coarse: torch.dtype) -> None:
    base = a_base()
    copy = {name: tensor.to(coarse) for name, tensor in base.items()}
    for one, two in ((base, copy), (copy, base)):
        with pytest.raises(WeightsError, match="do not differ"):
            difference(one, two, FixedRank(2))


def test_models_that_are_no_pair_are_refused() -> None:
    base = a_base()
    inpainting = base | {"unet.conv_in.weight": torch.ones(8, 9, 3, 3)}
    with pytest.raises(WeightsError, match=r"8, 4, 3, 3.*8, 9, 3, 3"):
        difference(base, inpainting, FixedRank(2))
    half = {name: tensor for name, tensor in base.items() if not name.startswith("text")}
    with pytest.raises(WeightsError, match="in one only"):
        difference(base, half, FixedRank(2))
    for wrong in (torch.nan, torch.inf):
        broken = base | {f"{WORDS}.weight": base[f"{WORDS}.weight"] * wrong}
        with pytest.raises(NonFiniteError):
            difference(base, broken, FixedRank(2))


def test_the_layers_of_a_model_are_those_that_adapters_change() -> None:
    names = layers_of(Memory(a_base()), SDXL_NAMES)
    assert names == {layer: f"{layer}.weight" for layer in (LINEAR, CONVOLUTION, WORDS)}
