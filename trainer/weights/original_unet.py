"""The tensors of a U-Net, in diffusers' names and in those of CompVis and SGM.

Source: the layouts of CompVis' latent-diffusion and Stability's generative-models (SGM).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.core.errors import WeightsError
from trainer.weights.places import Place, counted, layer, norm


def unet_places(config: Mapping[str, Any]) -> tuple[Place, ...]:
    """The tensors of a U-Net of Stable Diffusion 1, 2 or XL.

    Args:
        config: of diffusers' UNet2DConditionModel.

    Raises:
        WeightsError: it has blocks of another kind.
    """
    return counted(_UNet(config).places())


class _UNet:
    """The walk through a U-Net, in the order of diffusers."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._channels: Sequence[int] = config["block_out_channels"]
        self._layers = int(config.get("layers_per_block", 2))
        depths: int | Sequence[int] = config.get("transformer_layers_per_block", 1)
        self._depths = [depths] * len(self._channels) if isinstance(depths, int) else list(depths)
        self._context = int(config["cross_attention_dim"])
        self._time = 4 * self._channels[0]
        _check_unet(config)

    def places(self) -> Iterator[Place]:
        first, last = self._channels[0], self._channels[-1]
        yield from layer("time_embedding.linear_1", (self._time, first), "time_embed.0")
        yield from layer("time_embedding.linear_2", (self._time, self._time), "time_embed.2")
        if self._config.get("addition_embed_type"):
            width = int(self._config["projection_class_embeddings_input_dim"])
            yield from layer("add_embedding.linear_1", (self._time, width), "label_emb.0.0")
            yield from layer("add_embedding.linear_2", (self._time, self._time), "label_emb.0.2")
        read = int(self._config.get("in_channels", 4))
        yield from layer("conv_in", (first, read, 3, 3), "input_blocks.0.0")
        yield from self._down()
        yield from self._resnet("mid_block.resnets.0", last, last, "middle_block.0")
        yield from self._transformer("mid_block.attentions.0", last, self._depths[-1], "middle_block.1")
        yield from self._resnet("mid_block.resnets.1", last, last, "middle_block.2")
        yield from self._up()
        yield from norm("conv_norm_out", first, "out.0")
        yield from layer("conv_out", (int(self._config.get("out_channels", 4)), first, 3, 3), "out.2")

    def _down(self) -> Iterator[Place]:
        number, came = 1, self._channels[0]
        for level, (kind, width) in enumerate(zip(self._config["down_block_types"], self._channels, strict=True)):
            block = f"down_blocks.{level}"
            for index in range(self._layers):
                original = f"input_blocks.{number}"
                yield from self._resnet(f"{block}.resnets.{index}", came, width, f"{original}.0")
                if kind.startswith("CrossAttn"):
                    name = f"{block}.attentions.{index}"
                    yield from self._transformer(name, width, self._depths[level], f"{original}.1")
                number, came = number + 1, width
            if level < len(self._channels) - 1:
                original = f"input_blocks.{number}.0.op"
                yield from layer(f"{block}.downsamplers.0.conv", (width, width, 3, 3), original)
                number += 1

    def _up(self) -> Iterator[Place]:
        widths, depths = self._channels[::-1], self._depths[::-1]
        number, came = 0, widths[0]
        for level, kind in enumerate(self._config["up_block_types"]):
            block, width, last = f"up_blocks.{level}", widths[level], level == len(widths) - 1
            attends = kind.startswith("CrossAttn")
            for index in range(self._layers + 1):
                original = f"output_blocks.{number}"
                # each layer also reads what the matching one on the way down has kept; the last, what came into it
                kept = widths[min(level + 1, len(widths) - 1)] if index == self._layers else width
                yield from self._resnet(f"{block}.resnets.{index}", came + kept, width, f"{original}.0")
                if attends:
                    name = f"{block}.attentions.{index}"
                    yield from self._transformer(name, width, depths[level], f"{original}.1")
                number, came = number + 1, width
            if not last:
                original = f"output_blocks.{number - 1}.{2 if attends else 1}.conv"
                yield from layer(f"{block}.upsamplers.0.conv", (width, width, 3, 3), original)

    def _resnet(self, name: str, came: int, width: int, original: str) -> Iterator[Place]:
        yield from norm(f"{name}.norm1", came, f"{original}.in_layers.0")
        yield from layer(f"{name}.conv1", (width, came, 3, 3), f"{original}.in_layers.2")
        yield from layer(f"{name}.time_emb_proj", (width, self._time), f"{original}.emb_layers.1")
        yield from norm(f"{name}.norm2", width, f"{original}.out_layers.0")
        yield from layer(f"{name}.conv2", (width, width, 3, 3), f"{original}.out_layers.3")
        if came != width:
            yield from layer(f"{name}.conv_shortcut", (width, came, 1, 1), f"{original}.skip_connection")

    def _transformer(self, name: str, width: int, depth: int, original: str) -> Iterator[Place]:
        flat = (width, width) if self._config.get("use_linear_projection") else (width, width, 1, 1)
        yield from norm(f"{name}.norm", width, f"{original}.norm")
        yield from layer(f"{name}.proj_in", flat, f"{original}.proj_in")
        for number in range(depth):
            block = f".transformer_blocks.{number}"
            for path, shape in _transformer_block(width, self._context):
                yield Place(f"{name}{block}.{path}", shape, f"{original}{block}.{path}")  # both say the same inside
        yield from layer(f"{name}.proj_out", flat, f"{original}.proj_out")


def _check_unet(config: Mapping[str, Any]) -> None:
    unknown = [
        kind
        for kind in (*config["down_block_types"], *config["up_block_types"])
        if kind not in {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
    ]
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    unknown += [] if middle == "UNetMidBlock2DCrossAttn" else [str(middle)]
    unknown += [key for key in _UNKNOWN_WISHES if config.get(key) is not None]
    if config.get("addition_embed_type") not in {None, "text_time"}:
        unknown.append(str(config["addition_embed_type"]))
    if unknown:
        raise WeightsError(
            f"This U-Net is built in a way that we do not know: {', '.join(sorted(set(unknown)))}.",
            mend="Use a model of Stable Diffusion 1.x, 2.x or XL that keeps the shape of its family.",
        )


_UNKNOWN_WISHES = ("class_embed_type", "encoder_hid_dim", "reverse_transformer_layers_per_block")


def _transformer_block(width: int, context: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number, read in ((1, width), (2, context)):
        attention = f"attn{number}"
        yield f"{attention}.to_q.weight", (width, width)
        yield f"{attention}.to_k.weight", (width, read)
        yield f"{attention}.to_v.weight", (width, read)
        yield f"{attention}.to_out.0.weight", (width, width)
        yield f"{attention}.to_out.0.bias", (width,)
    yield "ff.net.0.proj.weight", (8 * width, width)
    yield "ff.net.0.proj.bias", (8 * width,)
    yield "ff.net.2.weight", (width, 4 * width)
    yield "ff.net.2.bias", (width,)
    for number in (1, 2, 3):
        yield f"norm{number}.weight", (width,)
        yield f"norm{number}.bias", (width,)
