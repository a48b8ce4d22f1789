"""The four parts of the base, in the classes of diffusers and transformers that Stable Diffusion 1.5 uses."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def build_autoencoder(picture_size: int = 64) -> AutoencoderKL:
    """Return an untrained autoencoder that makes 4 latent channels at a quarter of the picture's size."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        # diffusers types the next three as tuples of one
        block_out_channels=(16, 48, 96),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        norm_num_groups=8,
        sample_size=picture_size,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Return an untrained 5.55M-parameter U-Net for latents of 16 x 16."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder whose special-token ids are those of the reduced vocabulary."""
    vocabulary = tokenizer.get_vocab()
    end = vocabulary["<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=96,
        hidden_act="quick_gelu",
        # without these three the pooled output would be read from the wrong token
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=end,
        pad_token_id=end,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule with v-prediction, which keeps flat white grounds white."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def assemble_pipeline(
    autoencoder: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """Return the four parts as a pipeline without a safety checker."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        # diffusers types these three more narrowly than it takes them
        scheduler=build_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Return the pipeline of an exported folder in float32."""
    return StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)


def move(module: torch.nn.Module, device: torch.device | str, memory_format: torch.memory_format) -> None:
    """Move a network in place; diffusers' decorated `to` hides its own signature, so this takes torch's."""
    module.to(device=torch.device(device))
    module.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue] torch leaves this form untyped
