"""A LoRA of one layer on the small model, large enough to be seen."""

from pathlib import Path

import pytest
import torch

from trainer.core.device import Precision
from trainer.core.tensors import write_tensors
from trainer.families.auto import Auto


@pytest.fixture(scope="session")
def small_lora(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Auto(weights=str(small_model)).load(Precision.float32, torch.device("cpu"))
    layer = next(name for name, _ in model.denoiser.named_modules() if name.endswith("attn2.to_k"))
    outer, inner = model.denoiser.get_parameter(f"{layer}.weight").shape
    name = model.naming.to_kohya(f"unet.{layer}")
    chance = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, inner, generator=chance),
        f"{name}.lora_up.weight": torch.randn(outer, 2, generator=chance),
        f"{name}.alpha": torch.tensor(2.0),
    }
    path = tmp_path_factory.mktemp("lora") / "tried.safetensors"
    write_tensors(path, tensors, {})
    return path
