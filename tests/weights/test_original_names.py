"""Our table of names says what diffusers' own converters do, on the published sizes and on small ones."""

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.families.published import published_configs
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import PARTS, Part, places_of, prefix_of
from trainer.weights.places import STACKED, Place

FAMILIES: tuple[KnownFamily, ...] = ("sd1", "sd2", "sdxl")


def small(family: KnownFamily) -> dict[str, dict[str, Any]]:
    """The published configurations with fewer and narrower layers, and irregular where a family may be."""
    configs = published_configs(family, "velocity")
    levels = len(configs["unet"]["block_out_channels"])
    configs["unet"] |= {"block_out_channels": [32, 64, 64, 96][:levels], "attention_head_dim": 4}
    configs["unet"] |= {"cross_attention_dim": 24, "layers_per_block": 1}
    configs["vae"] |= {"block_out_channels": [32, 64, 64], "layers_per_block": 1}
    configs["vae"] |= {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    if family == "sdxl":
        configs["unet"] |= {"transformer_layers_per_block": [1, 3, 2], "projection_class_embeddings_input_dim": 72}
    for part in PARTS[family][2:]:
        configs[part] |= {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 2}
        configs[part] |= {"vocab_size": 50, "projection_dim": 32}
    return configs


def diffusers_names(family: KnownFamily, part: Part, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network that diffusers or transformers builds of a configuration."""
    import diffusers
    import transformers

    with init_empty_weights():
        if part == "unet":
            network: Any = diffusers.UNet2DConditionModel.from_config(config)
        elif part == "vae":
            network = diffusers.AutoencoderKL.from_config(config)
        else:
            kind = transformers.CLIPTextModelWithProjection if part == "text_encoder_2" else transformers.CLIPTextModel
            network = kind(transformers.CLIPTextConfig.from_dict(config))
    return {canonical(name, part): tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def canonical(name: str, part: Part) -> str:
    return name if not part.startswith("text") or name.startswith("text_") else f"text_model.{name}"


def converted(
    family: KnownFamily, part: Part, config: dict[str, Any], original: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What diffusers' converters make of a checkpoint."""
    from diffusers.loaders import single_file_utils as theirs
    from transformers import CLIPTextConfig

    if part == "unet":
        return theirs.convert_ldm_unet_checkpoint(dict(original), config)
    if part == "vae":
        return theirs.convert_ldm_vae_checkpoint(dict(original), config)
    prefix = prefix_of(family, part)
    if part == "text_encoder_2" or family == "sd2":

        class Model:
            config = CLIPTextConfig(hidden_size=int(original[f"{prefix}ln_final.weight"].shape[0]))

        return theirs.convert_open_clip_checkpoint(Model(), dict(original), prefix=prefix)
    return theirs.convert_ldm_clip_checkpoint(dict(original), remove_prefix=prefix)


def ours(place: Place, tensor: Tensor) -> Tensor:
    """Our tensor out of an original one, by what the place says."""
    assert tuple(tensor.shape) == place.original_shape
    if place.form in STACKED:
        return tensor.chunk(3)[STACKED.index(place.form)]
    return tensor.t() if place.form == "transposed" else tensor.reshape(place.shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["published", "small"])
def test_names_and_shapes_are_those_of_the_networks_and_of_the_converters(family: KnownFamily, size: str) -> None:
    configs = small(family) if size == "small" else published_configs(family, "epsilon")
    for part in PARTS[family]:
        places = places_of(family, part, configs[part])
        names = {place.name: place.shape for place in places}
        assert len(names) == len(places)
        assert names == diffusers_names(family, part, configs[part]), part
        prefix = prefix_of(family, part)
        original = {prefix + place.key: torch.empty(place.original_shape, device="meta") for place in places}
        found = converted(family, part, configs[part], original)
        assert {canonical(name, part): tuple(tensor.shape) for name, tensor in found.items()} == names, part


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_of_the_converters(family: KnownFamily) -> None:
    configs, generator = small(family), torch.Generator().manual_seed(0)
    for part in PARTS[family]:
        places = places_of(family, part, configs[part])
        prefix = prefix_of(family, part)
        original = {prefix + place.key: torch.randn(place.original_shape, generator=generator) for place in places}
        expected = {canonical(n, part): t for n, t in converted(family, part, configs[part], original).items()}
        found = {place.name: ours(place, original[prefix + place.key]) for place in places}
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("family", "counts"), [("sd1", (686, 248, 196)), ("sd2", (686, 248, 372)), ("sdxl", (1680, 248, 196, 517))]
)
def test_published_models_have_as_many_tensors_as_their_files(family: KnownFamily, counts: tuple[int, ...]) -> None:
    configs = published_configs(family, "epsilon")
    assert tuple(len(places_of(family, part, configs[part])) for part in PARTS[family]) == counts


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("unet", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        ("unet", {"mid_block_type": None}, "that we do not know: None"),
        ("unet", {"class_embed_type": "projection"}, "class_embed_type"),
        ("unet", {"block_out_channels": None}, "cannot be understood"),
        ("unet", {"block_out_channels": [320, 640]}, "cannot be understood"),
        ("unet", {"transformer_layers_per_block": 10**9}, "cannot be understood"),
        ("vae", {"latent_channels": "many"}, "cannot be understood"),
        ("text_encoder", {"num_hidden_layers": 10**12}, "cannot be understood"),
    ],
)
def test_configurations_of_another_kind_are_refused(part: Part, changes: dict[str, Any], says: str) -> None:
    config = published_configs("sd1", "epsilon")[part] | changes
    with pytest.raises(WeightsError, match=says):
        places_of("sd1", part, config)
