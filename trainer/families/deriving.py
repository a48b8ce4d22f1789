"""Configurations out of the shapes of an original checkpoint; what no shape tells is the family's rule."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from trainer.core.errors import WeightsError
from trainer.core.files import printable
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import Part

Shapes = Mapping[str, tuple[int, ...]]
"""Of the tensors of one network, by their keys behind its prefix."""

_HEAD = 64  # the width of an attention head in every CLIP encoder, and in the U-Nets of SD2 and SDXL
_SD1_HEADS = 8
_SD2_LAYERS = 23  # of 24: diffusers leaves out the last, which the U-Net was never shown


def derived(
    part: Part, family: KnownFamily, shapes: Shapes, published: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The configuration of a network of these shapes.

    Args:
        part: which network it is.
        family: of the model.
        shapes: of its tensors.
        published: the family's own configuration, for everything that shapes do not tell.
        where: the file, for messages.

    Raises:
        WeightsError: a tensor that tells of the shape is missing, or the network is not built as its family's.
    """
    derive: Callable[[KnownFamily, Shapes], dict[str, Any]]
    derive = {"unet": _unet, "vae": _vae}.get(part, _text)
    try:
        found = derive(family, shapes)
    except KeyError as error:
        raise WeightsError(
            f"The {part} of this checkpoint lacks the weight {printable(str(error.args[0])[:200])}.",
            where=where,
            mend="Copy or download the model again, whole.",
        ) from error
    except (IndexError, ValueError, StopIteration) as error:
        raise WeightsError(
            f"The {part} of this checkpoint is not built as that of its family.",
            where=where,
            mend="Use the model's version in the diffusers layout, a folder.",
        ) from error
    return {**published, **found}


def with_pooled(unet: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an SDXL U-Net with the size of its time embeddings, which follows from the pooled words."""
    width = int(unet["projection_class_embeddings_input_dim"]) - int(second["projection_dim"])
    return {**unet, "addition_time_embed_dim": width // 6}  # of six numbers: sizes, corner, target


def _unet(family: KnownFamily, shapes: Shapes) -> dict[str, Any]:
    widths: list[int] = []
    depths: list[list[int]] = [[]]
    number = 1
    while f"input_blocks.{number}.0.in_layers.0.weight" in shapes or f"input_blocks.{number}.0.op.weight" in shapes:
        if f"input_blocks.{number}.0.op.weight" in shapes:
            depths.append([])
        else:
            depths[-1].append(_depth(shapes, f"input_blocks.{number}.1."))
            widths[len(depths) - 1 :] = [shapes[f"input_blocks.{number}.0.out_layers.3.weight"][0]]
        number += 1
    if any(len(set(level)) != 1 or len(level) != len(depths[0]) for level in depths):
        raise ValueError  # a pruned U-Net, whose layers are not alike
    attends = [level[0] > 0 for level in depths]
    flat = next(len(shape) == 2 for key, shape in shapes.items() if key.endswith(".proj_in.weight"))
    deep = [max(1, level[0]) for level in depths]
    found = {
        "block_out_channels": widths,
        "layers_per_block": len(depths[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)],
        "transformer_layers_per_block": deep if max(deep) > 1 else 1,
        "cross_attention_dim": next(s[1] for key, s in shapes.items() if key.endswith(".attn2.to_k.weight")),
        "use_linear_projection": flat,
        "attention_head_dim": _SD1_HEADS if family == "sd1" else [max(1, width // _HEAD) for width in widths],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
    }
    if family == "sdxl":
        found["projection_class_embeddings_input_dim"] = shapes["label_emb.0.0.weight"][1]
    return found


def _depth(shapes: Shapes, prefix: str) -> int:
    """How many transformer blocks lie behind each other."""
    depth = 0
    while f"{prefix}transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    return depth


def _vae(family: KnownFamily, shapes: Shapes) -> dict[str, Any]:
    """As the original or diffusers names its tensors; they differ in the words alone."""
    own = any(key.startswith("encoder.down_blocks.") for key in shapes)
    block = "encoder.down_blocks.{}.resnets.{}" if own else "encoder.down.{}.block.{}"
    widths: list[int] = []
    while (key := f"{block.format(len(widths), 0)}.conv1.weight") in shapes:
        widths.append(shapes[key][0])
    layers = 0
    while f"{block.format(0, layers)}.conv1.weight" in shapes:
        layers += 1
    middle = re.compile(r"encoder\.mid(?:_block\.attentions\.0|\.attn_1)\.")
    return {
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "mid_block_add_attention": any(middle.match(key) for key in shapes),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def _text(family: KnownFamily, shapes: Shapes) -> dict[str, Any]:
    stacked = "positional_embedding" in shapes
    words = "token_embedding.weight" if stacked else "text_model.embeddings.token_embedding.weight"
    places = "positional_embedding" if stacked else "text_model.embeddings.position_embedding.weight"
    layer = "transformer.resblocks.{}.mlp.c_fc.weight" if stacked else "text_model.encoder.layers.{}.mlp.fc1.weight"
    layers = 0
    while layer.format(layers) in shapes:
        layers += 1
    vocabulary, width = shapes[words]
    found: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": shapes[places][0],
        "num_hidden_layers": layers,
        "intermediate_size": shapes[layer.format(0)][0],
        "num_attention_heads": max(1, width // _HEAD),
    }
    if stacked and family == "sd2":
        # files that diffusers' script wrote hold 23 layers already
        found["num_hidden_layers"] = _SD2_LAYERS if layers in (_SD2_LAYERS, _SD2_LAYERS + 1) else layers - 1
    if stacked and family == "sdxl":
        found["projection_dim"] = shapes["text_projection"][1]
    return found
