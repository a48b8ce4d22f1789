"""Small random captioners of the real classes, saved as people download them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Three pictures without captions, of three shapes and colours."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    for name, size, colour in (
        ("red.png", (40, 24), "red"),
        ("green.jpg", (24, 40), "green"),
        ("blue.webp", (32, 32), "blue"),
    ):
        Image.new("RGB", size, colour).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP with one layer of each kind and pictures of 32 pixels."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

    folder = tmp_path_factory.mktemp("blip")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        "a",
        "photograph",
        "of",
        "red",
        "green",
        "ball",
        "##s",
    ]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, bos_token=words[5])
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # weights this large make the words depend on the picture
        small = {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "initializer_range": 0.5,
        }  # fmt: skip
        config = BlipConfig(
            text_config={
                **small, "vocab_size": len(words), "encoder_hidden_size": 16, "projection_dim": 16,
                "max_position_embeddings": 64,
                "bos_token_id": 5, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3,
            },
            vision_config={**small, "image_size": 32, "patch_size": 16},
            projection_dim=16,
        )  # fmt: skip
        BlipForConditionalGeneration(config).save_pretrained(folder)
    # as Salesforce's own repositories write it
    described = {
        "image_processor_type": "BlipImageProcessor", "processor_class": "BlipProcessor", "do_normalize": True,
        "do_resize": True, "resample": 3, "size": {"height": 32, "width": 32},
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="session")
def florence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Florence-2 with one block in each of its four stages and pictures of 64 pixels."""
    from transformers import (
        CLIPImageProcessorPil,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        RobertaTokenizer,
    )

    folder = tmp_path_factory.mktemp("florence")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {word: number for number, word in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    processor = Florence2Processor(
        CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False),
        tokenizer,
        post_processor_config={"pure_text": {}, "description_with_bboxes": {}},
    )  # fmt: skip
    processor.image_processor.image_seq_length = 5
    processor.num_image_tokens = 5
    processor.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        numbers: dict[str, Any] = {
            "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
            "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        }  # fmt: skip
        config = Florence2Config(
            vision_config={
                "depths": [1] * 4, "embed_dim": [8] * 4, "num_heads": [1] * 4, "num_groups": [1] * 4,
                "window_size": 4, "projection_dim": 16, "drop_path_rate": 0.0, "initializer_range": 0.5,
            },
            text_config={
                "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16,
                "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
                "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
                "forced_eos_token_id": 2, "max_position_embeddings": 256, "init_std": 0.5,
            },
            **numbers,
        )  # fmt: skip
        network = Florence2ForConditionalGeneration(config)
    network.generation_config.suppress_tokens = _no_letters(tokenizer)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-VL with one layer, in the files of Qwen's own repositories."""
    from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("qwen")
    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    vocabulary = {sign: number for number, sign in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=marks)
    tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(folder)
    number: Any = tokenizer.convert_tokens_to_ids
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = Qwen2VLConfig(
            text_config={
                "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": number("<|im_end|>"),
                "pad_token_id": number("<|endoftext|>"), "bos_token_id": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
                "initializer_range": 0.5,
            },
            vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
                "initializer_range": 0.5,
            },
            image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
            vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
        )  # fmt: skip
        network = Qwen2VLForConditionalGeneration(config)
    network.generation_config.suppress_tokens = _no_letters(tokenizer)
    network.save_pretrained(folder)
    described = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "patch_size": 14,
        "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12845056,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder


def _no_letters(tokenizer: Any) -> list[int]:
    """All tokens but small letters and the end, so that what a random network says can be read and compared."""
    said = {*"abcdefghijklmnopqrstuvwxyz", tokenizer.eos_token}
    return [number for word, number in tokenizer.get_vocab().items() if word not in said]


class SmallTagger:
    """A graph of the taggers' form: probability of tag k = sigmoid(mean of blue, green, red . column k + bias k)."""

    tags = (
        ("general", 9),
        ("sensitive", 9),
        ("1girl", 0),
        ("long_hair", 0),
        ("^_^", 0),
        ("red_background", 0),
        ("saber_(fate)", 4),
        ("solo", 0),
    )

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.weights = (rng.normal(size=(3, len(self.tags))) * 4 / 255).astype(np.float32)
        self.bias = rng.normal(size=len(self.tags)).astype(np.float32)

    def probabilities(self, blue: float, green: float, red: float) -> dict[str, float]:
        """What the graph gives for a mean colour, 0 .. 255."""
        scores = np.array([blue, green, red]) @ self.weights + self.bias
        return {name: float(1 / (1 + np.exp(-score))) for (name, _), score in zip(self.tags, scores, strict=True)}

    def write(self, folder: Path, *, side: int = 16, batch: int | str = "batch", channels_last: bool = True) -> Path:
        """Write model.onnx and selected_tags.csv, as they are on the hub."""
        from onnx import TensorProto, helper, numpy_helper, save_model

        shape = [batch, side, side, 3] if channels_last else [batch, 3, side, side]
        axes = np.array([1, 2] if channels_last else [2, 3], dtype=np.int64)
        graph = helper.make_graph(
            [
                helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
                helper.make_node("Gemm", ["mean", "weights", "bias"], ["scores"]),
                helper.make_node("Sigmoid", ["scores"], ["output"]),
            ],
            "tagger",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, len(self.tags)])],
            [
                numpy_helper.from_array(axes, "axes"),
                numpy_helper.from_array(self.weights, "weights"),
                numpy_helper.from_array(self.bias, "bias"),
            ],
        )
        folder.mkdir(parents=True, exist_ok=True)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        save_model(model, folder / "model.onnx")
        with (folder / "selected_tags.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["tag_id", "name", "category", "count"])
            writer.writerows([number, name, category, 1000] for number, (name, category) in enumerate(self.tags))
        return folder


@pytest.fixture(scope="session")
def small_tagger() -> SmallTagger:
    """A tagger whose answers can be worked out by hand."""
    return SmallTagger()


@pytest.fixture(scope="session")
def tagger_folder(small_tagger: SmallTagger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tagger as a folder."""
    return small_tagger.write(tmp_path_factory.mktemp("tagger"))
