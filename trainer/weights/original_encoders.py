"""The tensors of autoencoders and text encoders, in our names and in those of CompVis and OpenCLIP.

Source: the layouts of CompVis' latent-diffusion and of OpenCLIP.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from trainer.weights.places import STACKED, Place, counted, layer, norm


def vae_places(config: Mapping[str, Any]) -> tuple[Place, ...]:
    """The tensors of an autoencoder.

    Args:
        config: of diffusers' AutoencoderKL.
    """
    return counted(_autoencoder(config))


def clip_places(config: Mapping[str, Any], *, projection: bool = False, stacked: bool = False) -> tuple[Place, ...]:
    """The tensors of a CLIP text encoder.

    Args:
        config: of transformers' CLIPTextModel.
        projection: whether it has a text projection, as SDXL's second encoder.
        stacked: whether the original is OpenCLIP's (SD2, SDXL's second encoder); else it has transformers' own names.
    """
    places = _clip(config, projection)
    return counted(map(_in_open_clip, places) if stacked else places)


def _autoencoder(config: Mapping[str, Any]) -> Iterator[Place]:
    channels: Sequence[int] = config["block_out_channels"]
    layers, latent = int(config.get("layers_per_block", 1)), int(config.get("latent_channels", 4))
    middle = bool(config.get("mid_block_add_attention", True))
    read, last = int(config.get("in_channels", 3)), channels[-1]
    yield from layer("encoder.conv_in", (channels[0], read, 3, 3), "encoder.conv_in")
    came = channels[0]
    for level, width in enumerate(channels):
        yield from _vae_level(f"encoder.down_blocks.{level}", (came, width), layers, f"encoder.down.{level}")
        if level < len(channels) - 1:
            name = f"encoder.down_blocks.{level}.downsamplers.0.conv"
            yield from layer(name, (width, width, 3, 3), f"encoder.down.{level}.downsample.conv")
        came = width
    yield from _vae_middle("encoder", last, middle)
    yield from norm("encoder.conv_norm_out", last, "encoder.norm_out")
    yield from layer("encoder.conv_out", (2 * latent, last, 3, 3), "encoder.conv_out")
    if config.get("use_quant_conv", True):
        yield from layer("quant_conv", (2 * latent, 2 * latent, 1, 1), "quant_conv")
    if config.get("use_post_quant_conv", True):
        yield from layer("post_quant_conv", (latent, latent, 1, 1), "post_quant_conv")
    yield from layer("decoder.conv_in", (last, latent, 3, 3), "decoder.conv_in")
    yield from _vae_middle("decoder", last, middle)
    came = last
    for level, width in enumerate(reversed(channels)):
        original = f"decoder.up.{len(channels) - 1 - level}"  # the original counts from the picture
        yield from _vae_level(f"decoder.up_blocks.{level}", (came, width), layers + 1, original)
        if level < len(channels) - 1:
            name = f"decoder.up_blocks.{level}.upsamplers.0.conv"
            yield from layer(name, (width, width, 3, 3), f"{original}.upsample.conv")
        came = width
    yield from norm("decoder.conv_norm_out", came, "decoder.norm_out")
    yield from layer("decoder.conv_out", (int(config.get("out_channels", 3)), came, 3, 3), "decoder.conv_out")


def _vae_level(name: str, widths: tuple[int, int], layers: int, original: str) -> Iterator[Place]:
    came, width = widths
    for index in range(layers):
        yield from _vae_resnet(
            f"{name}.resnets.{index}", came if index == 0 else width, width, f"{original}.block.{index}"
        )


def _vae_middle(half: str, width: int, attends: bool) -> Iterator[Place]:
    yield from _vae_resnet(f"{half}.mid_block.resnets.0", width, width, f"{half}.mid.block_1")
    if attends:
        name, original = f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"
        yield from norm(f"{name}.group_norm", width, f"{original}.norm")
        for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            weight, bias = layer(f"{name}.{ours}", (width, width), f"{original}.{theirs}")
            yield from (replace(weight, form="pointwise"), bias)
    yield from _vae_resnet(f"{half}.mid_block.resnets.1", width, width, f"{half}.mid.block_2")


def _vae_resnet(name: str, came: int, width: int, original: str) -> Iterator[Place]:
    yield from norm(f"{name}.norm1", came, f"{original}.norm1")
    yield from layer(f"{name}.conv1", (width, came, 3, 3), f"{original}.conv1")
    yield from norm(f"{name}.norm2", width, f"{original}.norm2")
    yield from layer(f"{name}.conv2", (width, width, 3, 3), f"{original}.conv2")
    if came != width:
        yield from layer(f"{name}.conv_shortcut", (width, came, 1, 1), f"{original}.nin_shortcut")


def _clip(config: Mapping[str, Any], projection: bool) -> Iterator[Place]:
    width = int(config["hidden_size"])
    for path, shape in _clip_paths(config, width):
        yield Place(f"text_model.{path}", shape, f"text_model.{path}")
    if projection:
        yield Place("text_projection.weight", (int(config["projection_dim"]), width), "text_projection.weight")


def _clip_paths(config: Mapping[str, Any], width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner = int(config["intermediate_size"])
    yield "embeddings.token_embedding.weight", (int(config["vocab_size"]), width)
    yield "embeddings.position_embedding.weight", (int(config["max_position_embeddings"]), width)
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner), "layer_norm1": (width,), "layer_norm2": (width,)}
    for number in range(int(config["num_hidden_layers"])):
        for name, shape in shapes.items():
            yield f"encoder.layers.{number}.{name}.weight", shape
            yield f"encoder.layers.{number}.{name}.bias", shape[:1]
    yield "final_layer_norm.weight", (width,)
    yield "final_layer_norm.bias", (width,)


_OPEN_CLIP: Final[Mapping[str, str]] = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_ALONE: Final[Mapping[str, str]] = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def _in_open_clip(place: Place) -> Place:
    if place.name == "text_projection.weight":
        return replace(place, key="text_projection", form="transposed")
    if place.name in _OPEN_CLIP_ALONE:
        return replace(place, key=_OPEN_CLIP_ALONE[place.name])
    number, _, path = place.name.removeprefix("text_model.encoder.layers.").partition(".")
    layer, _, kind = path.rpartition(".")
    block = f"transformer.resblocks.{number}"
    if layer in _OPEN_CLIP:
        return replace(place, key=f"{block}.{_OPEN_CLIP[layer]}.{kind}")
    form = STACKED["qkv".index(layer.removeprefix("self_attn.")[0])]
    return replace(place, key=f"{block}.attn.in_proj_{kind}", form=form)
