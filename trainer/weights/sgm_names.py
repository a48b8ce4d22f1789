"""The blocks of a U-Net as diffusers and as the original code (SGM) call them, for models of two resnets a block.

Source: the order of blocks in the original code; the names were measured in the programs that load SDXL LoRAs.
"""

import re

NUMBER = r"(?:0|[1-9][0-9]{0,2})"
"""A number inside a layer's name: one spelling each, and few digits, since names come from outside."""

_DOWN = 2  # resnets in a block on the way down; one more on the way up
_UP = 3
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_RESNET_BACK = {theirs: ours for ours, theirs in _RESNET.items()}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_MIDDLE_BACK = {theirs: ours for ours, theirs in _MIDDLE.items()}
_PLACES = {"resnets": 0, "attentions": 1}

_OURS = re.compile(rf"(down|up)_blocks\.({NUMBER})\.(resnets|attentions)\.([0-2])\.(.+)")
_OURS_MIDDLE = re.compile(r"mid_block\.((?:resnets|attentions)\.[01])\.(.+)")
_OURS_SAMPLER = re.compile(rf"(down|up)_blocks\.({NUMBER})\.(?:down|up)samplers\.0\.conv")
_COUNT = r"(0|[1-9][0-9]{0,3})"  # three for each block
_THEIRS = re.compile(rf"(input|output)_blocks\.{_COUNT}\.([01])\.(.+)")
_THEIRS_MIDDLE = re.compile(r"middle_block\.([012])\.(.+)")
_THEIRS_DOWN = re.compile(rf"input_blocks\.{_COUNT}\.0\.op")
_THEIRS_UP = re.compile(rf"output_blocks\.{_COUNT}\.[12]\.conv")  # 1 where the block has no attention


def to_sgm(path: str) -> str:
    """The original code's name of a layer, `input_blocks.4.1.proj_in` for `down_blocks.1.attentions.0.proj_in`.

    What is no layer of a block comes back as it is.
    """
    if found := _OURS.fullmatch(path):
        way, block, kind, number, rest = found.groups()
        first, side = (1 + int(block) * (_DOWN + 1), "input") if way == "down" else (int(block) * _UP, "output")
        return f"{side}_blocks.{first + int(number)}.{_PLACES[kind]}.{_within(kind, rest)}"
    if found := _OURS_MIDDLE.fullmatch(path):
        place, rest = found.groups()
        return f"middle_block.{_MIDDLE.get(place, place)}.{_within(place, rest)}"
    if found := _OURS_SAMPLER.fullmatch(path):
        way, block = found.groups()
        if way == "down":
            return f"input_blocks.{(int(block) + 1) * (_DOWN + 1)}.0.op"
        return f"output_blocks.{int(block) * _UP + _UP - 1}.2.conv"
    return path


def from_sgm(path: str) -> str:
    """The inverse; what is none of the original code's names comes back as it is."""
    if found := _THEIRS_DOWN.fullmatch(path):
        block, last = divmod(int(found[1]), _DOWN + 1)
        return path if last else f"down_blocks.{block - 1}.downsamplers.0.conv"
    if found := _THEIRS_UP.fullmatch(path):
        block, last = divmod(int(found[1]), _UP)
        return f"up_blocks.{block}.upsamplers.0.conv" if last == _UP - 1 else path
    if found := _THEIRS_MIDDLE.fullmatch(path):
        place = _MIDDLE_BACK[found[1]]
        within = _RESNET_BACK.get(found[2]) if place.startswith("resnets") else found[2]
        return path if within is None else f"mid_block.{place}.{within}"
    if found := _THEIRS.fullmatch(path):
        side, number, place, rest = found.groups()
        if side == "input" and number == "0":
            return path  # the first convolution, which belongs to no block
        count = int(number) - 1 if side == "input" else int(number)
        block, layer = divmod(count, _UP)  # on the way down the third is the downsampler
        kind, within = ("resnets", _RESNET_BACK.get(rest)) if place == "0" else ("attentions", rest)
        if within is not None:
            return f"{'down' if side == 'input' else 'up'}_blocks.{block}.{kind}.{layer}.{within}"
    return path


def _within(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind.startswith("resnets") else rest
