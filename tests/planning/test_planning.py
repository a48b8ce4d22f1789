"""What is planned is what torch makes: counted on real steps, and held against what is known of true sizes."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from torch import nn

from trainer.data.buckets import Bucket
from trainer.families.weightless import published_sd1, without_weights
from trainer.optim.groups import ParameterGroup
from trainer.optim.optimizers import AdamW, AdamW8bit
from trainer.planning.counting import LiveBytes
from trainer.planning.dry_run import count
from trainer.planning.fitting import fastest_fit
from trainer.planning.memory_plan import plan_memory
from trainer.planning.optimizer_state import state_bytes
from trainer.planning.pretending import NOWHERE, pretending
from trainer.planning.switches import make_fit, switches
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe

BUCKET = Bucket(32, 32)


@pytest.fixture
def recipe_of(small_model: Path, pictures: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        content: dict[str, Any] = {
            "name": "planned",
            "model": {"kind": "sd1", "weights": str(small_model)},
            "precision": "float32",
            "data": {"sources": [{"kind": "folder", "path": str(pictures)}], "resolution": 32},
            "adapter": {"kind": "lora", "rank": 2},
            "optimizer": {"kind": "adamw", "rate": 1.0e-3},
            "gradient_checkpointing": False,
            "batch": 4,
            "runs": str(tmp_path / "runs"),
        }
        path = tmp_path / "planned.yaml"
        path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
        return read_recipe(path)

    return make


def step(recipe: Recipe, **options: Any) -> Counter[str]:
    return Counter(count(recipe, BUCKET, "cuda", step_alone=True, **options).moments["training step"])


def test_a_storage_counts_until_its_last_view_is_gone() -> None:
    with LiveBytes() as live:
        with live.part("weights"):
            weight = torch.empty(1000, device=NOWHERE)  # 4000 bytes, 4096 as the allocator gives them out
        view = weight[10:20]
        assert live.live == {"weights": 4096}
        del weight
        assert live.live == {"weights": 4096}
        more = view + 1
        live.give(more, "gradients")
        assert live.live == {"weights": 4096, "gradients": 512}
        del view, more
        assert live.live == {}
        assert sum(live.peak.values()) == 4096 + 512


def test_what_is_saved_for_the_backward_pass_is_counted() -> None:
    """Of two layers with a nonlinearity between: the input of each, exactly."""
    with pretending("cpu") as live:
        with live.part("weights"):
            layers = nn.Sequential(nn.Linear(256, 256), nn.Sigmoid(), nn.Linear(256, 256)).to(NOWHERE)
        inputs = torch.empty(64, 256, device=NOWHERE)
        live.forget_peak()
        outputs = layers(inputs)
        assert live.live["activations"] == 3 * 64 * 256 * 4  # inputs, the sigmoid's answer, outputs
        assert live.flops == 2 * 2 * 64 * 256 * 256
        outputs.sum().backward()
        assert live.flops >= 4 * 2 * 64 * 256 * 256


def test_attention_keeps_no_matrix_of_all_pairs() -> None:
    with pretending("cuda") as live:
        query = torch.empty(1, 8, 4096, 40, device=NOWHERE, requires_grad=True)
        nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
        assert sum(live.peak.values()) < 4 * 8 * 4096 * 4096


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_mixed_precision_is_that_of_the_device(kind: Any) -> None:
    with pretending(kind):
        inputs = torch.empty(2, 8, device=NOWHERE)
        with torch.autocast("cpu", torch.bfloat16):
            linear = nn.functional.linear(inputs, torch.empty(8, 8, device=NOWHERE))
            norm = nn.functional.layer_norm(linear, (8,))
    assert linear.dtype == torch.bfloat16
    assert norm.dtype == (torch.float32 if kind == "cuda" else torch.bfloat16)


def test_the_names_that_stand_in_are_taken_back() -> None:
    before = (nn.functional.linear, torch.matmul, torch.Generator)
    with pretending("cuda"):
        assert nn.functional.linear is not before[0]
    assert (nn.functional.linear, torch.matmul, torch.Generator) == before


def test_cuda_autocasts_what_we_take_it_to() -> None:
    """torch's own table of kernels has each of the names, for CUDA."""
    has_kernel: Any = torch._C._dispatch_has_kernel_for_dispatch_key  # pyright: ignore[reportPrivateUsage]
    names = ("linear", "conv2d", "matmul", "bmm", "baddbmm", "addmm", "scaled_dot_product_attention")
    names += ("group_norm", "layer_norm", "softmax.int", "upsample_nearest2d")
    for name in names:
        assert has_kernel(f"aten::{name}", "AutocastCUDA"), name


def test_weights_and_state_are_exact(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of()
    parts = step(recipe)
    network = without_weights(recipe.model).load(recipe.precision, NOWHERE).denoiser
    assert parts["weights"] == sum(-(-tensor.nbytes // 512) * 512 for tensor in network.parameters())
    with_8_bits = step(recipe_of(optimizer={"kind": "adamw_8bit"}))
    assert with_8_bits["optimizer"] <= parts["optimizer"]


def test_no_weight_is_read(recipe_of: Callable[..., Recipe]) -> None:
    with patch("trainer.core.tensor_files.TensorFile.read", side_effect=AssertionError("a tensor was read")):
        assert step(recipe_of())["weights"] > 0


@pytest.mark.parametrize("settings", [AdamW(), AdamW8bit()])
def test_an_optimisers_state_is_what_it_keeps(settings: Any) -> None:
    """float32: two numbers a weight; 8 bits: two bytes, and scales by 256; small ones as is."""
    shapes = ((1000, 1000), (100, 100), (10, 10))
    groups = [ParameterGroup("all", [nn.Parameter(torch.empty(shape, device=NOWHERE)) for shape in shapes], None)]
    sizes = [1_000_000, 10_000, 100]
    if isinstance(settings, AdamW):
        assert state_bytes(settings, groups) == pytest.approx(8 * sum(sizes), rel=1e-3)
    else:
        expected = sum(2 * size + 8 * size / 256 for size in sizes[:2]) + 8 * sizes[2]
        maps = 2 * 256 * 4 * 5  # the tables of levels, which tensors share: counted once for each, at the most
        assert expected <= state_bytes(settings, groups) <= expected + maps


def test_switches_lower_the_peak(recipe_of: Callable[..., Recipe]) -> None:
    plain = recipe_of()
    tried = list(switches(plain, "cuda"))
    words = [switch.words[-1] for switch in tried]
    assert words[:2] == ["gradient_checkpointing=half", "gradient_checkpointing=true"]
    assert words[2:4] == ["accumulate=2", "accumulate=4"]
    assert words[4:] == [
        *("model.quantize=int8", "model.quantize=nf4"),
        *("model.resident=0.5", "model.resident=0.25", "model.resident=0.0"),
    ]
    peaks = [sum(step(switch.recipe).values()) for switch in tried[:4]]
    assert [sum(step(plain).values()), *peaks] == sorted([sum(step(plain).values()), *peaks], reverse=True)
    assert len(set(peaks)) == len(peaks)
    assert all(switch.recipe.batch * switch.recipe.accumulate == 4 for switch in tried)


def test_the_host_is_not_the_device(recipe_of: Callable[..., Recipe], small_model: Path) -> None:
    model = {"kind": "sd1", "weights": str(small_model)}
    whole, streamed = step(recipe_of()), step(recipe_of(model={**model, "resident": 0.0}))
    assert streamed["weights"] < 0.6 * whole["weights"]


def test_everything_an_adapter_needs_is_counted(recipe_of: Callable[..., Recipe]) -> None:
    words = step(recipe_of(adapter={"kind": "lora", "rank": 2, "layers": ["attention", "te1"]}))
    assert words["trained"] > step(recipe_of())["trained"]
    averaged = step(recipe_of(ema={}))
    assert averaged["average"] > 0
    accumulated = count(recipe_of(accumulate=3), BUCKET, "cuda", step_alone=True)
    assert accumulated.flops == count(recipe_of(), BUCKET, "cuda", step_alone=True).flops


def test_previews_and_encoders_are_moments_of_their_own(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(previews={"prompts": ["a ball"], "size": 16, "draw": {"steps": 2}})
    moments = count(recipe, BUCKET, "cuda").moments
    assert list(moments) == ["encoding pictures", "encoding captions", "training step", "drawing previews"]
    assert all(parts["encoders"] > 0 for name, parts in moments.items() if name != "training step")
    assert "weights" not in moments["encoding pictures"]
    assert not moments["training step"].get("encoders")


def test_the_cheapest_change_that_fits_is_found(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of()
    plan = plan_memory(recipe, BUCKET, "cuda", step_alone=True)
    changed = list(switches(recipe, "cuda"))[:3]
    sizes = [plan_memory(one.recipe, BUCKET, "cuda", step_alone=True).peak for one in changed]
    told: list[str] = []
    mended = make_fit(recipe, plan, sizes[0], told.append)
    assert mended is not None
    assert mended.words == ("gradient_checkpointing=half",) == tuple(told)
    mended = make_fit(recipe, plan, sizes[2], told.append)
    assert mended is not None
    assert mended.words == ("gradient_checkpointing=true", "batch=2", "accumulate=2")


def test_where_encoding_is_too_large_the_step_alone_is_no_answer(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.planning.switches._RESIDENT", ())
    recipe = recipe_of(
        batch=1, gradient_checkpointing="half", model=recipe_of().model.model_dump() | {"quantize": "nf4"}
    )
    plan = plan_memory(recipe, BUCKET, "cuda")
    assert plan.worst == "encoding pictures"
    told: list[str] = []
    assert make_fit(recipe, plan, plan.fixed + 1, told.append) is None
    assert told[-1].endswith("data.resolution=16")


@pytest.mark.slow
def test_the_fastest_that_fits(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of()
    step_alone = partial(plan_memory, step_alone=True)  # of so small a model, encoding needs more

    def planned(*arguments: Any, **_: Any) -> Any:
        return step_alone(*arguments)

    monkeypatch.setattr("trainer.planning.fitting.plan_memory", planned)
    roomy = fastest_fit(recipe, BUCKET, "cuda", 1 << 40, 4)
    assert (roomy.recipe.batch, roomy.recipe.gradient_checkpointing, roomy.fits) == (4, False, True)
    tight = fastest_fit(recipe, BUCKET, "cuda", roomy.plan.peak - 1, 4)
    assert tight.fits
    assert tight.plan.peak < roomy.plan.peak
    assert (tight.recipe.batch, tight.recipe.gradient_checkpointing) == (4, "half")
    assert not fastest_fit(recipe, BUCKET, "cuda", 1, 4).fits


def test_sizes_are_those_of_stable_diffusion(recipe_of: Callable[..., Recipe]) -> None:
    """859.5 million weights in the U-Net, and 123.1 million in the text encoder, as published."""
    settings = without_weights(published_sd1())
    model = settings.load(recipe_of().precision, NOWHERE)
    assert round(sum(weight.numel() for weight in model.denoiser.parameters()) / 1e6, 1) == 859.5
    assert round(sum(weight.numel() for weight in model.network("text_encoder").parameters()) / 1e6, 1) == 123.1
