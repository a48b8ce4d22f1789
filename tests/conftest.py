"""What all tests share: one thread, no network, a small random model, a handful of pictures."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import settings
from PIL import Image, ImageDraw, ImageFilter

from trainer.core.tensors import write_tensors

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


@pytest.fixture(scope="session")
def small_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion 2.x of 16-pixel pictures that predicts velocity."""
    from transformers import CLIPTextModel

    folder = tmp_path_factory.mktemp("small-sd2")
    shutil.copytree(BUNDLED / "scheduler", folder / "scheduler")
    shutil.copy(BUNDLED / "model_index.json", folder)
    padded_with_a_word(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        a_unet(cross_attention_dim=16, use_linear_projection=True).save_pretrained(folder / "unet")
        an_autoencoder(scaling_factor=0.6).save_pretrained(folder / "vae")
        CLIPTextModel(clip_configuration(16, hidden_act="gelu", num_hidden_layers=3)).save_pretrained(
            folder / "text_encoder"
        )
    return folder


@pytest.fixture(scope="session")
def small_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion XL of 16-pixel pictures that predicts epsilon."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("small-sdxl")
    shutil.copytree(BUNDLED / "scheduler", folder / "scheduler")
    shutil.copytree(BUNDLED / "tokenizer", folder / "tokenizer")
    padded_with_a_word(folder / "tokenizer_2")
    change_json(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    parts = {"tokenizer_2": ["transformers", "CLIPTokenizer"]}
    parts["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
    shutil.copy(BUNDLED / "model_index.json", folder)
    change_json(folder / "model_index.json", _class_name="StableDiffusionXLPipeline", **parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        a_unet(
            cross_attention_dim=28, use_linear_projection=True, layers_per_block=2, transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=12 + 6 * 8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).save_pretrained(folder / "unet")  # fmt: skip
        an_autoencoder(scaling_factor=0.4).save_pretrained(folder / "vae")
        CLIPTextModel(clip_configuration(16, num_hidden_layers=3)).save_pretrained(folder / "text_encoder")
        # 2 as an end mark stands in the published configuration; transformers then looks for the greatest token
        second = clip_configuration(12, hidden_act="gelu", num_hidden_layers=4, projection_dim=12, eos_token_id=2)
        CLIPTextModelWithProjection(second).save_pretrained(folder / "text_encoder_2")
    return folder


def a_unet(**changes: Any) -> Any:
    """A random U-Net of two levels; `changes` as diffusers calls them."""
    from diffusers import UNet2DConditionModel

    plain: dict[str, Any] = {  # diffusers types some of these as tuples of one
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        norm_num_groups=4, **(plain | changes),
    )  # fmt: skip


def an_autoencoder(**changes: Any) -> Any:
    """A random autoencoder that shrinks pictures by 4."""
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = {  # diffusers types these as tuples of one
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return AutoencoderKL(
        **(blocks | changes), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=16,
        mid_block_add_attention=False,
    )  # fmt: skip


def clip_configuration(width: int, **changes: Any) -> Any:
    """The configuration of a text encoder for the bundled vocabulary."""
    from transformers import CLIPTextConfig

    vocabulary = 6076
    plain: dict[str, Any] = {
        "hidden_act": "quick_gelu", "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1, "projection_dim": width,
    }  # fmt: skip
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_attention_heads=2,
        max_position_embeddings=77, **(plain | changes),
    )  # fmt: skip


def padded_with_a_word(folder: Path) -> None:
    """The bundled tokenizer, padding with `!` instead of the end mark, as those of OpenCLIP's models do."""
    shutil.copytree(BUNDLED / "tokenizer", folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change_json(folder / name, pad_token="!")  # noqa: S106 - a mark, no secret


def change_json(path: Path, **changes: Any) -> None:
    """Put other values into a file of JSON."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


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


@pytest.fixture
def recipe_file(small_model: Path, pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the recipe of a two-step run on the small model; top-level keys may be changed."""

    def make(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "name": "tried",
            "model": {"kind": "sd1", "weights": str(small_model)},
            "precision": "float32",
            "data": {
                "sources": [{"kind": "folder", "path": str(pictures)}],
                "resolution": 16,
                "cache": {"folder": str(tmp_path / "cache")},
            },
            "adapter": {"kind": "lora", "rank": 2},
            "optimizer": {"kind": "adamw", "rate": 1.0e-3},
            "batch": 2,
            "steps": 2,
            "runs": str(tmp_path / "runs"),
        }
        path = tmp_path / "tried.yaml"
        path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def spandrel() -> None:
    """spandrel, on machines without torchvision too: of that, the networks that are used here need one function."""
    pytest.importorskip("einops")
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except (ImportError, RuntimeError):
        functional = types.ModuleType("torchvision.transforms.functional")
        functional.__dict__.update(InterpolationMode=None, rotate=None, normalize=_normalised)
        stand_ins = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms")}
        sys.modules.update(stand_ins | {functional.__name__: functional})
        try:
            pytest.importorskip("spandrel")
        finally:  # other libraries shall see that it is missing
            for name in (*stand_ins, functional.__name__):
                del sys.modules[name]
    else:
        pytest.importorskip("spandrel")


def _normalised(pixels: torch.Tensor, mean: list[float], deviation: list[float]) -> torch.Tensor:
    """As torchvision's `normalize`."""
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def _written(network: torch.nn.Module, path: Path) -> Path:
    write_tensors(path, {name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    return path


@pytest.fixture
def esrgan(spandrel: None, tmp_path: Path) -> Path:
    """A random network that doubles pictures, with one block of 8 channels."""
    from spandrel.architectures.ESRGAN import ESRGAN  # pyright: ignore[reportMissingImports]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _written(ESRGAN(num_filters=8, num_blocks=1, scale=2), tmp_path / "x2.safetensors")


@pytest.fixture
def restoreformer(spandrel: None, tmp_path: Path) -> Path:
    """A random network for faces, of the real kind and with all its levels, but thin."""
    from spandrel.architectures.RestoreFormer import RestoreFormer  # pyright: ignore[reportMissingImports]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = RestoreFormer(
            n_embed=8, embed_dim=32, ch=32, ch_mult=(1, 1, 1, 1, 1, 1), num_res_blocks=1, z_channels=32, head_size=8
        )
        return _written(network, tmp_path / "faces.safetensors")


@pytest.fixture(scope="session")
def portrait() -> Callable[[int], Image.Image]:
    """Draws a face in the middle of a square; OpenCV takes it for one. No person looks like this."""

    def draw(side: int) -> Image.Image:
        picture = Image.new("RGB", (1024, 1024), (120, 130, 140))
        pen = ImageDraw.Draw(picture)
        pen.ellipse((224, 96, 800, 800), fill=(60, 40, 30))  # hair
        pen.ellipse((272, 176, 752, 912), fill=(226, 184, 160))
        for eye in (408, 616):
            pen.ellipse((eye - 80, 408, eye + 80, 512), fill=(170, 125, 105))
            pen.ellipse((eye - 56, 432, eye + 56, 496), fill=(245, 245, 245))
            pen.ellipse((eye - 32, 428, eye + 32, 500), fill=(40, 30, 25))
            pen.rounded_rectangle((eye - 80, 368, eye + 80, 396), 16, fill=(60, 40, 30))
        pen.polygon([(512, 448), (456, 640), (568, 640)], fill=(205, 160, 138))
        pen.ellipse((464, 616, 560, 664), fill=(170, 120, 100))
        pen.ellipse((416, 712, 608, 784), fill=(150, 70, 70))
        return picture.resize((side, side), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(side / 128))

    return draw


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state a process; who uses this neither meets that of the test before nor leaves one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage] - as its own tests do
    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]
