"""What all tests share: one thread, no network, a small random model, a handful of pictures."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw

# Examples take as long as a busy machine makes them.
settings.register_profile("trainer", deadline=None)
settings.load_profile("trainer")

# Two OpenMP threads on busy cores stall each other: the small models of the tests are 20 times quicker with one.
torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "trainer" / "families" / "bundled_base"


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion 1.x of 16-pixel pictures in the diffusers layout: quick, and the same each time."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("small-model")
    for name in ("model_index.json", "tokenizer", "scheduler"):
        source = BUNDLED / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
        ).save_pretrained(folder / "unet")  # fmt: skip
        blocks: dict[str, Any] = {  # diffusers types these as tuples of one
            "block_out_channels": (8, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
        }
        AutoencoderKL(
            **blocks, layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=16,
            mid_block_add_attention=False, scaling_factor=0.5,
        ).save_pretrained(folder / "vae")  # fmt: skip
        vocabulary = 6076
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=77, projection_dim=16, hidden_act="quick_gelu",
                bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
            )
        ).save_pretrained(folder / "text_encoder")  # fmt: skip
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures of two shapes, with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    colours = ("red", "green", "blue", "orange", "purple")
    for number, colour in enumerate(colours):
        size = (24, 16) if number % 2 else (16, 16)
        picture = Image.new("RGB", size, "white")
        ImageDraw.Draw(picture).ellipse((2 + number, 2, 12, 13), fill=colour)
        picture.save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"thing, {colour} ball, tag {number}", encoding="utf-8")
    return folder
