import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.errors import WeightsError
from trainer.weights.names import SD_NAMES, SDXL_NAMES

# as the five inference programs were seen to accept them
GOLDEN = [
    ("unet.down_blocks.0.attentions.0.proj_in", "lora_unet_down_blocks_0_attentions_0_proj_in"),
    (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    ),
    (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
    ),
    (
        "unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
    ),
    (
        "unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.2",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_2",
    ),
    ("unet.mid_block.attentions.0.proj_out", "lora_unet_mid_block_attentions_0_proj_out"),
    ("unet.down_blocks.0.resnets.0.conv1", "lora_unet_down_blocks_0_resnets_0_conv1"),
    ("unet.mid_block.resnets.0.time_emb_proj", "lora_unet_mid_block_resnets_0_time_emb_proj"),
    ("unet.up_blocks.1.resnets.2.conv_shortcut", "lora_unet_up_blocks_1_resnets_2_conv_shortcut"),
    ("unet.down_blocks.0.downsamplers.0.conv", "lora_unet_down_blocks_0_downsamplers_0_conv"),
    ("unet.up_blocks.0.upsamplers.0.conv", "lora_unet_up_blocks_0_upsamplers_0_conv"),
    (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ),
    (
        "text_encoder.text_model.encoder.layers.11.self_attn.out_proj",
        "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
    ),
    ("text_encoder.text_model.encoder.layers.22.mlp.fc1", "lora_te_text_model_encoder_layers_22_mlp_fc1"),
]


@pytest.mark.parametrize(("ours", "kohya"), GOLDEN)
def test_names_are_those_that_the_programs_accept(ours: str, kohya: str) -> None:
    assert SD_NAMES.to_kohya(ours) == kohya
    assert SD_NAMES.from_kohya(kohya) == ours


@given(st.sampled_from(sorted(SD_NAMES.parts)).flatmap(lambda part: st.tuples(st.just(part), a_path_of(part))))
def test_every_layer_comes_back(layer: tuple[str, str]) -> None:
    name = ".".join(layer)
    assert SD_NAMES.from_kohya(SD_NAMES.to_kohya(name)) == name


def a_path_of(part: str) -> st.SearchStrategy[str]:
    return st.from_regex(SD_NAMES.parts[part].layers, fullmatch=True)


def test_old_and_new_transformers_name_the_same_layer() -> None:
    new = "text_encoder.encoder.layers.3.mlp.fc2"
    assert SD_NAMES.canonical(new) == "text_encoder.text_model.encoder.layers.3.mlp.fc2"
    assert SD_NAMES.to_kohya(new) == "lora_te_text_model_encoder_layers_3_mlp_fc2"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "unet",
        "unet.conv_in",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn3.to_q",
        "unet.text_model.encoder.layers.0.mlp.fc1",
        "vae.decoder.mid_block.resnets.0.conv1",
        "unet.down_blocks.0.resnets.0.conv1\n",
        "unet.down_blocks.٠.resnets.0.conv1",
    ],
)
def test_unknown_layers_are_refused(name: str) -> None:
    with pytest.raises(WeightsError):
        SD_NAMES.to_kohya(name)


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_",
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        "lora_te_encoder_layers_0_mlp_fc1",
        "lora_unet_mid_block__resnets_0_conv1",
        "lora_unet_mid_block_resnets_0_conv1_",
        "lora_unet_mid.block.resnets.0.conv1",
        "mid_block_resnets_0_conv1",
        "lora_te_text_projection",
    ],
)
def test_unknown_kohya_names_are_refused(name: str) -> None:
    with pytest.raises(WeightsError) as caught:
        SD_NAMES.from_kohya(name)
    assert caught.value.where == name


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    with pytest.raises(WeightsError) as caught:
        SD_NAMES.from_kohya("lora_unet_\x1b[2J")
    assert "\x1b" not in str(caught.value)


def test_sd1_text_encoders_are_read_under_the_name_that_diffusers_gave_them_too() -> None:
    ours = SD_NAMES.from_kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1")
    assert ours == "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert SD_NAMES.to_kohya(ours) == "lora_te_text_model_encoder_layers_0_mlp_fc1"


# SDXL's layers in diffusers' names and in the original code's, one of each kind and at each corner of the U-Net
XL_GOLDEN = {
    "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks.0.resnets.1.conv2": "input_blocks_2_0_out_layers_3",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks_4_0_emb_layers_1",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "down_blocks.1.attentions.0.proj_in": "input_blocks_4_1_proj_in",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": "input_blocks_4_1_transformer_blocks_1_attn1_to_q",
    "down_blocks.1.downsamplers.0.conv": "input_blocks_6_0_op",
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj":
        "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
    "mid_block.resnets.0.conv1": "middle_block_0_in_layers_2",
    "mid_block.attentions.0.proj_out": "middle_block_1_proj_out",
    "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
    "up_blocks.0.resnets.0.conv_shortcut": "output_blocks_0_0_skip_connection",
    "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0":
        "output_blocks_2_1_transformer_blocks_9_attn2_to_out_0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "up_blocks.1.attentions.2.proj_in": "output_blocks_5_1_proj_in",
    "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
    "up_blocks.2.resnets.2.conv2": "output_blocks_8_0_out_layers_3",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(XL_GOLDEN))
def test_sdxl_is_written_in_the_original_codes_names_and_read_in_both(path: str) -> None:
    theirs, ours = f"lora_unet_{XL_GOLDEN[path]}", f"unet.{path}"
    assert SDXL_NAMES.to_kohya(ours) == theirs
    assert SDXL_NAMES.from_kohya(theirs) == ours
    assert SDXL_NAMES.from_kohya(f"lora_unet_{path.replace('.', '_')}") == ours
    assert SDXL_NAMES.from_kohya(f"lycoris_{path.replace('.', '_')}") == ours


def test_the_two_text_encoders_of_sdxl() -> None:
    path = "text_model.encoder.layers.31.mlp.fc2"
    assert SDXL_NAMES.to_kohya(f"text_encoder.{path}") == "lora_te1_text_model_encoder_layers_31_mlp_fc2"
    assert SDXL_NAMES.to_kohya(f"text_encoder_2.{path}") == "lora_te2_text_model_encoder_layers_31_mlp_fc2"
    assert SDXL_NAMES.from_kohya("lora_te2_text_model_encoder_layers_31_mlp_fc2") == f"text_encoder_2.{path}"


@given(st.sampled_from(sorted(SDXL_NAMES.parts)).flatmap(lambda part: st.tuples(st.just(part), an_xl_path_of(part))))
def test_every_layer_of_sdxl_comes_back(layer: tuple[str, str]) -> None:
    name = ".".join(layer)
    kohya = SDXL_NAMES.to_kohya(name)
    assert not re.search("down_blocks|up_blocks|mid_block", kohya)
    assert SDXL_NAMES.from_kohya(kohya) == name


def an_xl_path_of(part: str) -> st.SearchStrategy[str]:
    return st.from_regex(SDXL_NAMES.parts[part].layers, fullmatch=True)


def test_an_upsampler_without_attention_is_read_at_its_other_place() -> None:
    """SD1's first block on the way up has none, so the original code counts its upsampler as the second module."""
    assert SDXL_NAMES.from_kohya("lora_unet_output_blocks_2_1_conv") == "unet.up_blocks.0.upsamplers.0.conv"


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_input_blocks_0_0",
        "lora_unet_input_blocks_0_1_proj_in",
        "lora_unet_input_blocks_1_0_conv1",
        "lora_unet_input_blocks_1_0_resnets_0_conv1",
        "lora_unet_input_blocks_01_0_in_layers_2",
        "lora_unet_input_blocks_3_1_proj_in",
        "lora_unet_input_blocks_4_0_op",
        "lora_unet_input_blocks_9999_0_in_layers_2",
        "lora_unet_middle_block_0_proj_in",
        "lora_unet_middle_block_1_in_layers_2",
        "lora_unet_middle_block_3_in_layers_2",
        "lora_unet_output_blocks_1_2_conv",
        "lora_unet_out_2",
        "lora_unet_label_emb_0_0",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_projection",
    ],
)
def test_what_is_no_layer_of_sdxl_is_refused(name: str) -> None:
    with pytest.raises(WeightsError):
        SDXL_NAMES.from_kohya(name)
