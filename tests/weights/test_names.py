from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.errors import WeightsError
from trainer.weights.names import SD_NAMES, Naming, PartNames

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
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
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


def test_another_tools_names_are_one_table() -> None:
    """As SDXL's SGM names will come: beginnings of paths, the longest counts."""
    table = {"down_blocks.1.attentions.0": "input_blocks.4.1", "down_blocks.1": "input_blocks.4.9"}
    unet: PartNames = replace(SD_NAMES.parts["unet"], renamed=table)
    naming = Naming(parts={"unet": unet})
    ours = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    assert naming.to_kohya(ours) == "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    assert naming.from_kohya("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q") == ours
    assert naming.from_kohya("lora_unet_mid_block_resnets_0_conv1") == "unet.mid_block.resnets.0.conv1"
