"""Feature spaces out of CLIP's and DINOv2's weights, here small random ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.core.errors import WeightsError
from trainer.evaluation.features import BuiltIn
from trainer.evaluation.networks import features_in

BUNDLED = Path(__file__).parents[2] / "trainer" / "families" / "bundled_base" / "tokenizer"


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(folder)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends = {"bos_token_id": 6074, "eos_token_id": 6075, "pad_token_id": 6075}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(
            CLIPConfig(
                text_config={**small, "vocab_size": 6076, "max_position_embeddings": 77, **ends},
                vision_config={**small, "image_size": 32, "patch_size": 8},
                projection_dim=12,
            )
        ).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"crop_size": {"height": 32, "width": 32}}', encoding="utf-8")
    return folder


def test_clip_sees_and_reads_in_one_space(clip: Path) -> None:
    features = features_in(clip)
    assert (features.name, features.weights_name) == ("clip", clip.name)
    encode, read = features.load(), features.reader()
    assert read is not None
    seen = encode([picture("red"), picture("blue"), picture("red", (64, 64))])
    assert seen.shape == (3, 12)
    np.testing.assert_allclose(seen[0], seen[2], atol=1e-5)
    assert np.abs(seen[0] - seen[1]).max() > 1e-3
    texts = read(["a red ball", "a blue ball"])
    assert texts.shape == (2, 12)
    assert np.abs(texts[0] - texts[1]).max() > 1e-4
    assert encode([]).shape == (0, 12)


def test_clip_sees_what_transformers_sees(clip: Path) -> None:
    """The square of a picture that needs no scaling, normalised by CLIP's own numbers."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip).eval()
    whole = Image.effect_noise((32, 32), 80).convert("RGB")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.from_numpy(np.asarray(whole).copy()) / 255 - mean) / deviation).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected: Any = model.vision_model(pixel_values=pixels).pooler_output @ model.visual_projection.weight.T
    np.testing.assert_allclose(features_in(clip).load()([whole]), expected.numpy(), atol=1e-4)


def test_dinov2_sees_and_does_not_read(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**small, image_size=28, patch_size=14)).save_pretrained(tmp_path)
    features = features_in(tmp_path)
    assert features.reader() is None
    assert features.load()([picture("red")]).shape == (1, 16)


def test_without_a_folder_the_space_is_the_built_in_one_and_strangers_are_refused(tmp_path: Path) -> None:
    assert isinstance(features_in(None), BuiltIn)
    with pytest.raises(WeightsError, match="CLIP or DINOv2"):
        features_in(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        features_in(tmp_path).load()
