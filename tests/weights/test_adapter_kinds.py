"""What each kind of adapter does to a weight: against formulas written out here, and against peft's own layers."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from trainer.core.errors import WeightsError
from trainer.weights.adapter_kinds import DoraState, LohaState, LokrState, state_of
from trainer.weights.lora_state import LoraState

LINEAR = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
WIDE = "unet.mid_block.resnets.0.conv1"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def named(layer: str, roles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{layer}.{role}": tensor for role, tensor in roles.items()}


def test_loha_is_the_entrywise_product_of_two_products() -> None:
    roles = {"hada_w1_a": drawn(6, 2), "hada_w1_b": drawn(2, 9), "hada_w2_a": drawn(6, 2, seed=1)}
    roles["hada_w2_b"] = drawn(2, 9, seed=1)
    state = state_of(named(LINEAR, roles), {LINEAR: 1.0})
    assert isinstance(state, LohaState)
    expected = torch.zeros(6, 9)
    for o in range(6):
        for i in range(9):
            first = sum(roles["hada_w1_a"][o, r] * roles["hada_w1_b"][r, i] for r in range(2))
            second = sum(roles["hada_w2_a"][o, r] * roles["hada_w2_b"][r, i] for r in range(2))
            expected[o, i] = 0.5 * first * second  # alpha 1, rank 2
    assert_close(state.change(LINEAR), expected)
    assert state.rank(LINEAR) == 2
    assert abs(state.norm(LINEAR) - float(expected.norm())) < 1e-5


@pytest.mark.parametrize("whole", [True, False])
def test_lokr_is_a_kronecker_product_and_alpha_counts_only_with_thin_factors(whole: bool) -> None:
    roles = {"lokr_w1": drawn(2, 3)}
    roles |= {"lokr_w2": drawn(4, 5)} if whole else {"lokr_w2_a": drawn(4, 2), "lokr_w2_b": drawn(2, 5)}
    second = roles["lokr_w2"] if whole else roles["lokr_w2_a"] @ roles["lokr_w2_b"]
    state = state_of(named(LINEAR, roles), {LINEAR: 6.0})
    assert isinstance(state, LokrState)
    expected = torch.zeros(8, 15)
    for o in range(8):
        for i in range(15):
            expected[o, i] = roles["lokr_w1"][o // 4, i // 5] * second[o % 4, i % 5]
    assert_close(state.change(LINEAR), expected * (1.0 if whole else 6.0 / 2))
    assert state.rank(LINEAR) == (None if whole else 2)


def test_a_missing_alpha_is_the_rank() -> None:
    pair = {"lora_A.weight": drawn(3, 8), "lora_B.weight": drawn(7, 3)}
    assert_close(state_of(named(LINEAR, pair), {}).change(LINEAR), pair["lora_B.weight"] @ pair["lora_A.weight"])


def test_a_core_between_the_halves_is_multiplied_in() -> None:
    """LyCORIS' Tucker form: delta[o,i,k,l] = sum over r, s of up[o,r] core[r,s,k,l] down[s,i]."""
    down, core, up = drawn(2, 5, 1, 1), drawn(2, 2, 3, 3), drawn(4, 2, 1, 1)
    expected = torch.einsum("or,rskl,si->oikl", up[..., 0, 0], core, down[..., 0, 0]) * 3 / 2
    roles = {"lora_A.weight": down, "lora_B.weight": up, "lora_mid.weight": core}
    state = state_of(named(WIDE, roles), {WIDE: 3.0})
    assert type(state) is LoraState
    assert_close(state.change(WIDE), expected)
    # of the products the outer halves are written [rank out] and [rank in]
    thin = {"hada_w1_a": drawn(2, 4), "hada_w1_b": drawn(2, 5), "hada_t1": core}
    thin |= {"hada_w2_a": drawn(2, 4, seed=1), "hada_w2_b": drawn(2, 5, seed=1), "hada_t2": drawn(2, 2, 3, 3, seed=1)}
    halves = [
        torch.einsum("ijkl,ip,jr->prkl", thin[f"hada_t{n}"], thin[f"hada_w{n}_a"], thin[f"hada_w{n}_b"]) for n in (1, 2)
    ]
    weight = torch.zeros(4, 5, 3, 3)
    assert_close(state_of(named(WIDE, thin), {}).change(WIDE, weight), halves[0] * halves[1])
    kron = {"lokr_w1": drawn(2, 3), "lokr_w2_a": drawn(2, 4), "lokr_w2_b": drawn(2, 5), "lokr_t2": core}
    second = torch.einsum("ijkl,ip,jr->prkl", core, kron["lokr_w2_a"], kron["lokr_w2_b"]).contiguous()
    expected = torch.kron(kron["lokr_w1"][:, :, None, None], second)
    assert_close(state_of(named(WIDE, kron), {}).change(WIDE, torch.zeros(8, 15, 3, 3)), expected)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("axis", ["input", "output"])
def test_dora_gives_each_row_or_column_its_length(axis: str, wide: bool) -> None:
    """On square weights too, where the number of lengths tells nothing."""
    layer, kernel = (WIDE, (3, 3)) if wide else (LINEAR, ())
    ones = (1,) * len(kernel)
    weight = drawn(6, 6, *kernel, seed=5)
    roles = {"lora_A.weight": drawn(2, 6, *kernel), "lora_B.weight": drawn(6, 2, *ones)}
    lengths = drawn(6).abs() + 0.5
    roles["dora_scale"] = lengths.reshape(1, 6, *ones) if axis == "input" else lengths.reshape(6, 1, *ones)
    state = state_of(named(layer, roles), {layer: 1.0})
    assert isinstance(state, DoraState)
    assert state.axis(layer) == axis
    changed = weight + state.change(layer, weight)
    of_each = changed.transpose(0, 1) if axis == "input" else changed
    assert_close(of_each.flatten(1).norm(dim=1), lengths)
    # and its direction is that of the plain sum
    product = (roles["lora_B.weight"].flatten(1) @ roles["lora_A.weight"].flatten(1)).reshape(weight.shape)
    plain = weight + 0.5 * product
    plain = plain.transpose(0, 1) if axis == "input" else plain
    cosine = nn.functional.cosine_similarity(of_each.flatten(1), plain.flatten(1), dim=1)
    assert_close(cosine, torch.ones(6))
    with pytest.raises(WeightsError, match="needs the base's weight"):
        state.change(layer)


class Small(nn.Module):
    """A linear layer and two convolutions, under names that peft can target."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 8)
        self.wide = nn.Conv2d(12, 8, 3)
        self.narrow = nn.Conv2d(12, 12, 1)


LAYERS = {
    "linear": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "wide": "unet.mid_block.resnets.0.conv1",
    "narrow": "unet.mid_block.attentions.0.proj_in",
}


def pefts(config: Any) -> tuple[Small, dict[str, Any]]:
    """A network with peft's layers, their numbers drawn."""
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Small()
        inject_adapter_in_model(config, network)
        for name, parameter in network.named_parameters():
            if "base_layer" not in name:
                nn.init.normal_(parameter, std=0.3)
    return network, {name: layer for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)}


def taken_from(network: nn.Module) -> dict[str, Tensor]:
    """peft's tensors under our names of layers."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        layer, _, role = name.partition(".")
        if "base_layer" not in role:
            role = role.removesuffix(".default") if role.startswith(("hada", "lokr")) else role
            tensors[f"{LAYERS[layer]}.{role}"] = parameter.detach()
    return tensors


@pytest.mark.parametrize("kind", ["lora", "loha", "loha tucker", "lokr", "lokr tucker", "lokr both"])
def test_the_change_is_the_one_that_peft_adds(kind: str) -> None:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    shared: dict[str, Any] = {"r": 2, "target_modules": list(LAYERS)}
    thin: dict[str, Any] = {**shared, "r": 1}
    config: Any = {
        "lora": lambda: LoraConfig(lora_alpha=5, **shared),
        "loha": lambda: LoHaConfig(alpha=5, **shared),
        "loha tucker": lambda: LoHaConfig(alpha=5, use_effective_conv2d=True, **shared),
        "lokr": lambda: LoKrConfig(alpha=5, decompose_factor=2, **shared),
        "lokr tucker": lambda: LoKrConfig(alpha=5, decompose_factor=2, use_effective_conv2d=True, **shared),
        "lokr both": lambda: LoKrConfig(alpha=5, decompose_factor=4, decompose_both=True, **thin),
    }[kind]()
    network, layers = pefts(config)
    state = state_of(taken_from(network), dict.fromkeys(LAYERS.values(), 5.0))
    assert state.kind == kind.split()[0]
    for name, layer in layers.items():
        found = state.change(LAYERS[name], layer.base_layer.weight)
        assert_close(found, layer.get_delta_weight("default").detach(), rtol=1e-5, atol=1e-6)


def test_a_dora_of_pefts_is_one_of_rows() -> None:
    from peft import LoraConfig

    network, layers = pefts(LoraConfig(r=2, lora_alpha=5, use_dora=True, target_modules=list(LAYERS)))
    state = state_of(taken_from(network), dict.fromkeys(LAYERS.values(), 5.0))
    assert isinstance(state, DoraState)
    for name, layer in layers.items():
        assert state.axis(LAYERS[name]) == "output"
        weight = layer.base_layer.weight.detach().clone()
        layer.merge()
        assert_close(weight + state.change(LAYERS[name], weight), layer.base_layer.weight.detach())


def test_lengths_without_axes_are_pefts_and_so_are_all_of_their_file() -> None:
    """As diffusers' converter to kohya's names writes them; [1 6 1 1] would be the columns' otherwise."""
    pair = {"lora_A.weight": drawn(2, 6), "lora_B.weight": drawn(6, 2)}
    wide = {"lora_A.weight": drawn(2, 6, 3, 3), "lora_B.weight": drawn(6, 2, 1, 1)}
    scales = {f"{LINEAR}.dora_scale": drawn(6), f"{WIDE}.dora_scale": drawn(1, 6, 1, 1)}
    state = state_of(named(LINEAR, pair) | named(WIDE, wide) | scales, {})
    assert isinstance(state, DoraState)
    assert (state.axis(LINEAR), state.axis(WIDE)) == ("output", "output")
    scales[f"{LINEAR}.dora_scale"] = drawn(1, 6)
    state = state_of(named(LINEAR, pair) | named(WIDE, wide) | scales, {})
    assert isinstance(state, DoraState)
    assert (state.axis(LINEAR), state.axis(WIDE)) == ("input", "input")


def good() -> dict[str, dict[str, Tensor]]:
    return {
        "lora": {"lora_A.weight": drawn(2, 9), "lora_B.weight": drawn(6, 2)},
        "loha": {
            "hada_w1_a": drawn(6, 2), "hada_w1_b": drawn(2, 9), "hada_w2_a": drawn(6, 2), "hada_w2_b": drawn(2, 9)
        },
        "lokr": {"lokr_w1": drawn(2, 3), "lokr_w2_a": drawn(4, 2), "lokr_w2_b": drawn(2, 5)},
        "dora": {"lora_A.weight": drawn(2, 9), "lora_B.weight": drawn(6, 2), "dora_scale": drawn(1, 9)},
    }  # fmt: skip


WRONG: dict[str, tuple[str, dict[str, Tensor | None]]] = {
    "a half of a LoHa is missing": ("loha", {"hada_w2_b": None}),
    "its ranks differ": ("loha", {"hada_w2_a": drawn(6, 1), "hada_w2_b": drawn(1, 9)}),
    "its halves do not fit": ("loha", {"hada_w1_b": drawn(3, 9)}),
    "its rank is above the layer's": (
        "loha",
        {
            "hada_w1_a": drawn(6, 7), "hada_w1_b": drawn(7, 9), "hada_w2_a": drawn(6, 7), "hada_w2_b": drawn(7, 9)
        },
    ),
    "it is integers": ("loha", {"hada_w1_a": torch.ones(6, 2, dtype=torch.int64)}),
    "a factor of a LoKr is missing": ("lokr", {"lokr_w1": None}),
    "half a factor is missing": ("lokr", {"lokr_w2_b": None}),
    "a factor is whole and in halves": ("lokr", {"lokr_w2": drawn(4, 5)}),
    "a factor is a vector": ("lokr", {"lokr_w1": drawn(3)}),
    "the first factor has a kernel": ("lokr", {"lokr_w1": drawn(2, 3, 1, 1)}),
    "a factor is empty": ("lokr", {"lokr_w1": torch.zeros(0, 3)}),
    "its first factor has a core": ("lokr", {"lokr_t1": drawn(2, 2, 3, 3)}),
    "a core does not fit": ("lora", {"lora_mid.weight": drawn(3, 3, 3, 3)}),
    "a core is complex": ("lora", {"lora_mid.weight": torch.ones(2, 2, 3, 3, dtype=torch.complex64)}),
    "lengths of the other side": ("dora", {"dora_scale": drawn(1, 6)}),
    "lengths without a side": ("dora", {"dora_scale": drawn(9)}),
    "lengths of nothing": ("dora", {"dora_scale": torch.zeros(1, 0)}),
    "lengths that are integers": ("dora", {"dora_scale": torch.ones(1, 9, dtype=torch.int32)}),
    "a magnitude of peft's that is a matrix": ("dora", {"dora_scale": None, "lora_magnitude_vector": drawn(2, 3)}),
    "lengths twice": ("dora", {"lora_magnitude_vector.weight": drawn(6)}),
    "a piece of another kind": ("lora", {"hada_w1_a": drawn(6, 2)}),
    "two whole kinds in one layer": ("loha", {"lora_A.weight": drawn(2, 9), "lora_B.weight": drawn(6, 2)}),
    "a tensor of no kind": ("lora", {"diff": drawn(6, 9)}),
    "lengths alone": ("dora", {"lora_A.weight": None, "lora_B.weight": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_is_no_whole_adapter_is_refused(case: str) -> None:
    kind, changed = WRONG[case]
    assert state_of(named(LINEAR, good()[kind]), {}).kind == kind
    roles = {role: tensor for role, tensor in {**good()[kind], **changed}.items() if tensor is not None}
    with pytest.raises(WeightsError):
        state_of(named(LINEAR, roles), {})


def test_layers_of_two_kinds_are_refused_by_their_names() -> None:
    with pytest.raises(WeightsError, match="loha, lora"):
        state_of(named(LINEAR, good()["lora"]) | named(WIDE, good()["loha"]), {})


def test_a_state_refuses_what_is_of_another_kind() -> None:
    tensors = named(LINEAR, good()["dora"])
    for kind in (LoraState, LohaState, LokrState):
        with pytest.raises(WeightsError):
            kind(tensors=tensors, alphas={LINEAR: 1.0}).check()


@pytest.mark.parametrize("kind", sorted(good()))
def test_a_base_of_another_size_is_refused(kind: str) -> None:
    state = state_of(named(LINEAR, good()[kind]), {})
    for shape in ((6, 8), (9, 6), (6,)):
        with pytest.raises(WeightsError):
            state.change(LINEAR, torch.ones(shape))


def test_dora_may_leave_layers_without_lengths() -> None:
    """LyCORIS decomposes only some layers when it is told so."""
    state = state_of(named(LINEAR, good()["lora"]) | named(WIDE, good()["dora"]), {})
    assert isinstance(state, DoraState)
    assert_close(state.change(LINEAR), state_of(named(LINEAR, good()["lora"]), {}).change(LINEAR))
