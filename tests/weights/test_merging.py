import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.core.errors import NonFiniteError, RecipeError, WeightsError
from trainer.core.progress import Silence
from trainer.weights.adapter_kinds import DoraState, LohaState, LokrState
from trainer.weights.adapter_state import AdapterState
from trainer.weights.lora_state import LoraState
from trainer.weights.low_rank import FixedRank, RankRule, RetainedEnergy
from trainer.weights.merging import Weighted, merge, merged_weight
from trainer.weights.products import Base

FAMILIES: dict[str, dict[str, tuple[int, ...]]] = {
    "sd1": {
        "unet.down_blocks.1.attentions.0.proj_in": (32, 32, 1, 1),
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (32, 24),
        "unet.mid_block.resnets.0.conv1": (48, 8, 3, 3),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (24, 24),
    },
    "sd2": {
        "unet.down_blocks.1.attentions.0.proj_in": (32, 32),
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj": (128, 32),
        "text_encoder.text_model.encoder.layers.22.mlp.fc1": (96, 24),
    },
    "sdxl": {
        "unet.down_blocks.1.attentions.0.proj_in": (32, 32),
        "unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_out.0": (40, 40),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (24, 24),
        "text_encoder_2.text_model.encoder.layers.31.mlp.fc2": (20, 80),
    },
}


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_lora(shapes: dict[str, tuple[int, ...]], rank: int, alpha: float, seed: int) -> LoraState:
    tensors: dict[str, Tensor] = {}
    for number, (layer, (out, *inner)) in enumerate(shapes.items()):
        tensors[f"{layer}.lora_A.weight"] = some(rank, *inner, seed=seed + number)
        tensors[f"{layer}.lora_B.weight"] = some(out, rank, *[1] * (len(inner) - 1), seed=seed + number + 50)
    return LoraState(tensors, dict.fromkeys(shapes, alpha))


def together(adapters: list[Weighted], rule: RankRule | None = None, base: Base | None = None) -> LoraState:
    found, _ = merge(adapters, rule, torch.float32, base or Base(), Silence())
    found.check()
    return found


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("family", sorted(FAMILIES))
@given(strengths=st.lists(st.floats(-2, 2).filter(lambda s: abs(s) > 0.01), min_size=1, max_size=3))
def test_merging_is_the_sum_of_the_changes(family: str, strengths: list[float]) -> None:
    shapes = FAMILIES[family]
    adapters = [
        Weighted(str(n), a_lora(shapes, rank=2 + n, alpha=1.5 + n, seed=7 * n), strength)
        for n, strength in enumerate(strengths)
    ]
    found = together(adapters)
    assert found.layers() == sorted(shapes)
    for layer in shapes:
        expected = sum(one.strength * one.adapter.change(layer).double() for one in adapters)
        assert isinstance(expected, Tensor)
        assert found.rank(layer) == sum(2 + n for n in range(len(strengths)))
        assert found.scale(layer) == 1.0
        assert found.change(layer).shape == expected.shape
        scale = max(float((one.strength * one.adapter.change(layer)).norm()) for one in adapters)
        assert float((found.change(layer) - expected).norm()) <= 1e-6 * scale


def test_layers_that_one_adapter_has_alone_are_kept() -> None:
    shapes = FAMILIES["sdxl"]
    first, second = list(shapes)[:3], list(shapes)[2:]
    one = a_lora({layer: shapes[layer] for layer in first}, 2, 2.0, seed=0)
    two = a_lora({layer: shapes[layer] for layer in second}, 4, 1.0, seed=9)
    found = together([Weighted("one", one, 0.7), Weighted("two", two, 0.5)])
    assert found.layers() == sorted(shapes)
    assert {layer: found.rank(layer) for layer in shapes} == {
        layer: 2 * (layer in first) + 4 * (layer in second) for layer in shapes
    }
    assert distance(found.change(first[0]), 0.7 * one.change(first[0])) < 1e-6
    assert distance(found.change(second[1]), 0.5 * two.change(second[1])) < 1e-6


def test_ranks_beyond_the_layers_own_are_folded_and_still_exact() -> None:
    shapes = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (24, 24)}
    adapters = [Weighted(str(n), a_lora(shapes, 16, 8.0, seed=n), 1.0) for n in range(3)]
    found, report = merge(adapters, None, torch.float32, Base(), Silence())
    found.check()  # a rank of 48 in a layer of 24 would be refused
    layer = next(iter(shapes))
    assert found.rank(layer) == 24
    assert (
        distance(found.change(layer), sum((one.adapter.change(layer) for one in adapters), torch.zeros(24, 24))) < 1e-6
    )
    assert report.relative_error < 1e-6


@pytest.mark.parametrize("rule", [FixedRank(3), RetainedEnergy(0.8)])
def test_less_rank_gives_the_nearest_and_tells_the_error(rule: RankRule) -> None:
    shapes = FAMILIES["sd1"]
    adapters = [Weighted(str(n), a_lora(shapes, 4, 2.0, seed=n), 0.6) for n in range(2)]
    found, report = merge(adapters, rule, torch.float32, Base(), Silence())
    for fit in report.layers:
        change = 0.6 * (adapters[0].adapter.change(fit.layer) + adapters[1].adapter.change(fit.layer)).flatten(1)
        values = torch.linalg.svdvals(change.double())
        assert found.rank(fit.layer) == fit.rank
        assert abs(fit.relative_error - float(values[fit.rank :].norm() / values.norm())) < 1e-5
        assert abs(distance(found.change(fit.layer).flatten(1), change) - fit.relative_error) < 1e-5


def test_an_adapter_without_strength_does_nothing() -> None:
    shapes = FAMILIES["sd2"]
    one, two = a_lora(shapes, 2, 2.0, seed=0), a_lora(shapes, 3, 2.0, seed=1)
    found = together([Weighted("one", one, 1.0), Weighted("two", two, 0.0)])
    assert {found.rank(layer) for layer in shapes} == {2}
    with pytest.raises(WeightsError, match="Nothing is left"):
        together([Weighted("one", one, 0.0)])


def test_adapters_that_cancel_out_leave_nothing() -> None:
    one = a_lora(FAMILIES["sd2"], 2, 2.0, seed=0)
    with pytest.raises(WeightsError, match="Nothing is left"):
        together([Weighted("one", one, 1.0), Weighted("two", one, -1.0)], FixedRank(2))


def of_kind(kind: str, shapes: dict[str, tuple[int, ...]]) -> AdapterState:
    tensors: dict[str, Tensor] = {}
    for layer, (out, *inner) in shapes.items():
        flat = int(torch.Size(inner).numel())
        if kind == "loha":
            for n, word in enumerate(("hada_w1", "hada_w2")):
                tensors |= {f"{layer}.{word}_a": some(out, 2, seed=n), f"{layer}.{word}_b": some(2, flat, seed=n + 5)}
        else:
            tensors |= {f"{layer}.lokr_w1": some(4, 4, seed=1), f"{layer}.lokr_w2": some(out // 4, flat // 4, seed=2)}
    return (LohaState if kind == "loha" else LokrState)(tensors, dict.fromkeys(shapes, 2.0))


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_other_kinds_become_a_lora(kind: str) -> None:
    shapes = FAMILIES["sd1"]
    other = of_kind(kind, shapes)
    lora = a_lora(shapes, 2, 2.0, seed=3)
    adapters = [Weighted("lora", lora, 0.5), Weighted("other", other, 0.7)]
    with pytest.raises(RecipeError, match="other is no plain LoRA"):
        together(adapters)
    found = together(adapters, RetainedEnergy(1.0), Base(family="sd1"))
    for layer, shape in shapes.items():
        expected = 0.5 * lora.change(layer) + 0.7 * other.change(layer).reshape(shape)
        assert found.change(layer).shape == shape
        assert distance(found.change(layer), expected) < 1e-5


def test_a_dora_is_merged_with_its_base_and_refused_without() -> None:
    shapes = FAMILIES["sdxl"]
    lora = a_lora(shapes, 2, 2.0, seed=3)
    lengths = {f"{layer}.dora_scale": some(shape[0], 1, seed=4).abs() for layer, shape in shapes.items()}
    dora = DoraState({**lora.tensors, **lengths}, lora.alphas)
    weights = {layer: some(*shape, seed=8) for layer, shape in shapes.items()}
    adapters = [Weighted("dora", dora, 0.5)]
    with pytest.raises(WeightsError, match="depends on the base"):
        together(adapters, FixedRank(4))
    found = together(adapters, RetainedEnergy(1.0), Base(weight=weights.__getitem__))
    for layer, weight in weights.items():
        assert distance(found.change(layer), 0.5 * dora.change(layer, weight)) < 1e-5


def test_files_of_models_of_different_sizes_are_refused() -> None:
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    one, two = a_lora({layer: (24, 24)}, 2, 2.0, seed=0), a_lora({layer: (24, 32)}, 2, 2.0, seed=0)
    for rule in (None, FixedRank(2)):
        with pytest.raises(WeightsError, match=r"24, 24.*24, 32"):
            together([Weighted("one", one, 1.0), Weighted("two", two, 1.0)], rule)
    loha = of_kind("loha", {layer: (24, 32)})
    with pytest.raises(WeightsError, match=r"24, 24.*24, 32"):
        together([Weighted("one", one, 1.0), Weighted("two", loha, 1.0)], FixedRank(2))


def test_a_projection_as_convolution_and_as_matrix_are_one_layer() -> None:
    """kohya's files have Stable Diffusion 2's projections as convolutions of one pixel, diffusers as matrices."""
    layer = "unet.down_blocks.1.attentions.0.proj_in"
    one, two = a_lora({layer: (32, 32)}, 2, 2.0, seed=0), a_lora({layer: (32, 32, 1, 1)}, 2, 2.0, seed=1)
    found = together([Weighted("one", one, 1.0), Weighted("two", two, 1.0)])
    assert distance(found.change(layer), one.change(layer) + two.change(layer)[:, :, 0, 0]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bases_weight_takes_the_changes_in_single_precision(dtype: torch.dtype) -> None:
    layer, shape = "unet.mid_block.resnets.0.conv1", FAMILIES["sd1"]["unet.mid_block.resnets.0.conv1"]
    weight = some(*shape, seed=1).to(dtype)
    acting = [Weighted(str(n), a_lora({layer: shape}, 2, 2.0, seed=n), 0.8) for n in range(2)]
    acting.append(Weighted("loha", of_kind("loha", {layer: shape}), -0.3))
    found = merged_weight(layer, weight, acting, dtype)
    expected = weight.float() + sum(
        (one.strength * one.adapter.change(layer, weight.float()) for one in acting), torch.zeros(shape)
    )
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


def test_a_sum_that_overflows_is_refused() -> None:
    layer = "unet.mid_block.resnets.0.conv1"
    acting = [Weighted("one", a_lora({layer: (8, 4, 3, 3)}, 2, 2e6, seed=0), 1.0)]
    with pytest.raises(NonFiniteError, match="float16"):
        merged_weight(layer, some(8, 4, 3, 3, seed=1).half(), acting, torch.float16)
    with pytest.raises(WeightsError):
        merged_weight(layer, some(8, 5, 3, 3, seed=1), acting, torch.float32)
