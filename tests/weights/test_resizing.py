import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.progress import Silence
from trainer.weights.adapter_kinds import DoraState, LohaState
from trainer.weights.lora_state import LoraState
from trainer.weights.low_rank import FixedRank, RankRule, RetainedEnergy
from trainer.weights.products import Base
from trainer.weights.resizing import resize

LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "unet.mid_block.resnets.0.conv1"
WORDS = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
SHAPES = {LINEAR: (20, 14), CONVOLUTION: (16, 5, 3, 3), WORDS: (24, 9)}


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_lora(rank: int, alpha: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> LoraState:
    tensors: dict[str, Tensor] = {}
    for number, (layer, (out, *inner)) in enumerate(SHAPES.items()):
        ones = (1,) * (len(inner) - 1)
        tensors[f"{layer}.lora_A.weight"] = some(rank, *inner, seed=seed + number).to(dtype)
        tensors[f"{layer}.lora_B.weight"] = some(out, rank, *ones, seed=seed + number + 100).to(dtype)
    return LoraState(tensors, dict.fromkeys(SHAPES, alpha))


def truncated(change: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
    return (left[:, :rank] * values[:rank] @ right[:rank]).reshape(change.shape)


def resized(state: LoraState, rule: RankRule, dtype: torch.dtype = torch.float32) -> LoraState:
    found, _ = resize(state, rule, dtype, Base(), Silence())
    found.check()
    return found


@pytest.mark.parametrize("alpha", [8.0, 1.0, -3.0])
@given(rank=st.integers(1, 10))
def test_the_result_is_the_truncated_decomposition_of_each_change(alpha: float, rank: int) -> None:
    state = a_lora(8, alpha)
    found = resized(state, FixedRank(rank))
    assert found.layers() == state.layers()
    for layer in state.layers():
        change = state.change(layer)
        assert found.rank(layer) == min(rank, 8)
        assert math.isclose(found.scale(layer), state.scale(layer), rel_tol=1e-12)  # the strength stays equal
        expected = truncated(change, rank)
        assert float((found.change(layer) - expected).norm() / change.norm()) < 1e-6


def test_the_error_that_is_told_is_the_error_there_is() -> None:
    state = a_lora(8, 4.0)
    found, report = resize(state, FixedRank(3), torch.float32, Base(), Silence())
    squares = {"error": 0.0, "norm": 0.0}
    for fit in report.layers:
        change = state.change(fit.layer).double()
        error = float((found.change(fit.layer).double() - change).norm())
        assert (fit.rank_before, fit.rank) == (8, 3)
        assert math.isclose(fit.norm, float(change.norm()), rel_tol=1e-6)
        assert math.isclose(fit.error, error, rel_tol=1e-5)
        squares["error"] += error**2
        squares["norm"] += float(change.norm()) ** 2
    assert math.isclose(report.relative_error, math.sqrt(squares["error"] / squares["norm"]), rel_tol=1e-5)
    assert report.worst(1)[0].relative_error == max(fit.relative_error for fit in report.layers)
    assert set(report.parts) == {"unet", "text_encoder_2"}
    assert report.ranks == (3, 3)
    assert report.as_json()["layers"][0]["rank"] == 3


def test_rounding_is_part_of_the_error() -> None:
    _, report = resize(a_lora(8, 4.0), FixedRank(8), torch.bfloat16, Base(), Silence())
    assert 1e-4 < report.relative_error < 1e-2


@given(st.floats(0.05, 0.999))
def test_energy_keeps_its_share_and_more_energy_keeps_more(share: float) -> None:
    state = a_lora(8, 4.0)
    less, more = resized(state, RetainedEnergy(share)), resized(state, RetainedEnergy(min(1.0, share + 0.1)))
    for layer in state.layers():
        change = state.change(layer)
        kept = float(less.change(layer).square().sum() / change.square().sum())
        assert kept >= share - 1e-5
        rank, greater = less.rank(layer), more.rank(layer)
        assert rank is not None
        assert greater is not None
        assert rank <= greater
        assert rank == 1 or float(truncated(change, rank - 1).square().sum() / change.square().sum()) < share


def test_all_energy_is_exact_at_full_rank() -> None:
    state = a_lora(5, 4.0)
    found, report = resize(state, RetainedEnergy(1.0), torch.float32, Base(), Silence())
    assert {found.rank(layer) for layer in found.layers()} == {5}
    assert report.relative_error < 1e-6


def test_a_greater_rank_than_there_is_changes_nothing() -> None:
    found, report = resize(a_lora(4, 4.0), FixedRank(64), torch.float32, Base(), Silence())
    assert {found.rank(layer) for layer in found.layers()} == {4}
    assert report.relative_error < 1e-6


def test_layers_that_change_nothing_are_left_out() -> None:
    state = a_lora(4, 4.0)
    silent = LoraState({**state.tensors, f"{LINEAR}.lora_B.weight": torch.zeros(20, 4)}, state.alphas)
    found, report = resize(silent, FixedRank(2), torch.float32, Base(), Silence())
    assert report.unchanged == (LINEAR,)
    assert found.layers() == sorted(set(SHAPES) - {LINEAR})
    without_alpha = LoraState(state.tensors, {**state.alphas, WORDS: 0.0})
    assert WORDS not in resized(without_alpha, FixedRank(2)).layers()
    with pytest.raises(WeightsError, match="Nothing is left"):
        resize(LoraState(state.tensors, dict.fromkeys(SHAPES, 0.0)), FixedRank(2), torch.float32, Base(), Silence())


def test_what_a_number_format_cannot_hold_is_refused() -> None:
    state = a_lora(4, 4.0)
    loud = LoraState({name: tensor * 1e6 for name, tensor in state.tensors.items()}, state.alphas)
    with pytest.raises(NonFiniteError, match="overflows in float16"):
        resize(loud, FixedRank(2), torch.float16, Base(), Silence())


def test_a_loha_becomes_a_lora() -> None:
    tensors: dict[str, Tensor] = {}
    for layer, (out, *inner) in SHAPES.items():
        for number, word in enumerate(("hada_w1", "hada_w2")):
            tensors[f"{layer}.{word}_a"] = some(out, 2, seed=number)
            tensors[f"{layer}.{word}_b"] = some(2, math.prod(inner), seed=number + 9)
    state = LohaState(tensors, dict.fromkeys(SHAPES, 2.0))
    found, report = resize(state, FixedRank(4), torch.float32, Base(), Silence())
    found.check()
    for layer, shape in SHAPES.items():
        change = found.change(layer)
        assert change.shape == shape  # of a convolution too, whose kernel a LoHa does not tell
        expected = state.change(layer).reshape(shape)
        assert float((change - expected).norm() / expected.norm()) < 1e-5  # a product of two ranks 2 has rank 4
        assert found.scale(layer) == 1.0
    assert {fit.rank_before for fit in report.layers} == {None}


def test_a_dora_needs_its_base() -> None:
    lora = a_lora(4, 4.0)
    weights = {layer: some(*shape, seed=7) for layer, shape in SHAPES.items()}
    lengths = {
        f"{layer}.dora_scale": some(1, shape[1], *[1] * (len(shape) - 2), seed=3).abs()
        for layer, shape in SHAPES.items()
    }
    state = DoraState({**lora.tensors, **lengths}, lora.alphas)
    with pytest.raises(WeightsError, match="depends on the base"):
        resize(state, FixedRank(24), torch.float32, Base(), Silence())
    found, _ = resize(state, FixedRank(24), torch.float32, Base(weight=weights.__getitem__), Silence())
    for layer, weight in weights.items():
        expected = state.change(layer, weight)
        assert float((found.change(layer) - expected).norm() / expected.norm()) < 1e-5
