"""A base model so small that a whole run takes seconds: the bundled one's layout and words, with random networks."""

import shutil
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
BUNDLED: Final = ROOT / "trainer" / "families" / "bundled_base"
_VOCABULARY: Final = 6076  # as of the bundled tokenizer


def write_small_base(folder: Path) -> Path:
    """Write the model, the same each time; gives its folder."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    shutil.rmtree(folder, ignore_errors=True)
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(BUNDLED / name, folder / name)
    shutil.copy(BUNDLED / "model_index.json", folder)
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2,
    ).save_pretrained(folder / "unet")  # fmt: skip
    blocks: dict[str, Any] = {  # diffusers types these as tuples of one
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    AutoencoderKL(**blocks, norm_num_groups=4, sample_size=16, mid_block_add_attention=False).save_pretrained(
        folder / "vae"
    )
    words = CLIPTextConfig(
        vocab_size=_VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=16, bos_token_id=_VOCABULARY - 2, eos_token_id=_VOCABULARY - 1, pad_token_id=_VOCABULARY - 1,
    )  # fmt: skip
    CLIPTextModel(words).save_pretrained(folder / "text_encoder")
    return folder
