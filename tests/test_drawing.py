"""A file is drawn on the base that it fits, in the way that it was trained."""

from pathlib import Path

import pytest
import torch

from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.core.tensors import write_tensors
from trainer.drawing import open_for_drawing
from trainer.families.auto import Auto
from trainer.sampling.generate import generate
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Ddim

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.drawing.opening.pick_device", lambda: CPU)


def a_lora(base: Path, path: Path, **metadata: str) -> Path:
    """A LoRA of one layer of the base's U-Net, large enough to be seen."""
    model = Auto(weights=str(base)).load(Precision.float32, CPU)
    layer = next(name for name, _ in model.denoiser.named_modules() if name.endswith("attn2.to_k"))
    outer, inner = model.denoiser.get_parameter(f"{layer}.weight").shape
    name = model.naming.to_kohya(f"unet.{layer}")
    chance = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, inner, generator=chance),
        f"{name}.lora_up.weight": torch.randn(outer, 2, generator=chance),
        f"{name}.alpha": torch.tensor(2.0),
    }
    write_tensors(path, tensors, metadata)
    return path


def test_a_file_for_another_family_is_named(small_sd2: Path, small_sdxl: Path, tmp_path: Path) -> None:
    lora = a_lora(small_sdxl, tmp_path / "xl.safetensors")  # told by its names alone
    with pytest.raises(WeightsError, match=r"is for Stable Diffusion XL, and the base model is Stable Diffusion 2\.x"):
        open_for_drawing(lora, str(small_sd2), 1.0)
    said = a_lora(small_sd2, tmp_path / "two.safetensors", ss_base_model_version="sd_v2_v")
    with pytest.raises(WeightsError, match=r"is for Stable Diffusion 2\.x, and the base model is Stable Diffusion XL"):
        open_for_drawing(said, str(small_sdxl), 1.0)


def test_a_file_is_drawn_with_its_own_limits(small_model: Path, small_sdxl: Path, tmp_path: Path) -> None:
    plain = a_lora(small_model, tmp_path / "plain.safetensors")
    model, resolution = open_for_drawing(plain, str(small_model), 1.0)
    assert (model.token_limit, resolution) == (75, 16)  # the size that the base was made for
    said = {"ss_base_model_version": "sd_v1", "modelspec.resolution": "24x32", "ss_max_token_length": "225"}
    wide = a_lora(small_model, tmp_path / "wide.safetensors", **said, ss_clip_skip="1")
    model, resolution = open_for_drawing(wide, str(small_model), 1.0)
    assert (model.token_limit, resolution) == (225, 24)
    skipping = a_lora(small_model, tmp_path / "skipping.safetensors", **said, ss_clip_skip="2")
    with pytest.raises(WeightsError, match="has 1 layers, so clip_skip cannot be 2"):  # so it was heard
        open_for_drawing(skipping, str(small_model), 1.0)
    # some programs write it for families that skip nothing
    unheard = a_lora(small_sdxl, tmp_path / "xl.safetensors", ss_base_model_version="sdxl_base_v1-0", ss_clip_skip="2")
    model, _ = open_for_drawing(unheard, str(small_sdxl), 1.0)
    assert model.family == "sdxl"


def test_zero_terminal_snr_of_the_training_is_drawn_with(small_sd2: Path, tmp_path: Path) -> None:
    said = {"ss_base_model_version": "sd_v2_v", "modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}
    model, _ = open_for_drawing(a_lora(small_sd2, tmp_path / "z.safetensors", **said), str(small_sd2), 1.0)
    assert model.scheduler_config()["rescale_betas_zero_snr"] is True
    assert model.scheduler_config()["timestep_spacing"] == "trailing"


def test_a_file_of_xl_changes_the_picture_by_its_strength(small_sdxl: Path, tmp_path: Path) -> None:
    lora = a_lora(small_sdxl, tmp_path / "xl.safetensors")
    drawn: list[torch.Tensor] = []
    for strength in (0.0, 1.0):
        model, _ = open_for_drawing(lora, str(small_sdxl), strength)
        words = model.encode_words(["red"])
        with torch.no_grad():
            drawn.append(model.predict(torch.ones(1, 4, 4, 4), torch.tensor([500]), words))
    base = Auto(weights=str(small_sdxl)).load(Precision.float32, CPU)
    with torch.no_grad():
        plain = base.predict(torch.ones(1, 4, 4, 4), torch.tensor([500]), base.encode_words(["red"]))
    torch.testing.assert_close(drawn[0], plain)
    assert (drawn[1] - plain).abs().max() > 1e-3
    pictures = generate(base, [Prompt(text="red")], Ddim(), DrawSettings(steps=2), (16, 24))
    assert pictures[0].size == (16, 24)
