"""One layer, its name in each tool: ours (peft's, after the part), and kohya's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trainer.core.errors import WeightsError
from trainer.core.files import printable
from trainer.weights.sgm_names import NUMBER, from_sgm, to_sgm

# Words of the craft that hold an underscore themselves; all other underscores in a kohya name were once dots.
_COMPOUNDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v",
    "to_out", "time_emb_proj", "conv_shortcut", "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection",
)  # fmt: skip
_WORD = re.compile(rf"(?:^|_)({'|'.join(_COMPOUNDS)}|[a-z0-9]+)(?=_|$)")

_TRANSFORMER = (
    rf"(?:proj_(?:in|out)|transformer_blocks\.{NUMBER}\.(?:attn[12]\.to_(?:[qkv]|out\.0)|ff\.net\.(?:0\.proj|2)))"
)
_RESNET = r"(?:conv[12]|conv_shortcut|time_emb_proj)"
_UNET_LAYER = re.compile(
    rf"(?:(?:down|up)_blocks\.{NUMBER}|mid_block)\."
    rf"(?:attentions\.{NUMBER}\.{_TRANSFORMER}|resnets\.{NUMBER}\.{_RESNET}|(?:down|up)samplers\.{NUMBER}\.conv)"
)
# SGM names count blocks by these numbers of layers, so a model of other numbers has no name there
_XL_UNET_LAYER = re.compile(
    rf"down_blocks\.{NUMBER}\.(?:attentions\.[01]\.{_TRANSFORMER}|resnets\.[01]\.{_RESNET}|downsamplers\.0\.conv)"
    rf"|up_blocks\.{NUMBER}\.(?:attentions\.[0-2]\.{_TRANSFORMER}|resnets\.[0-2]\.{_RESNET}|upsamplers\.0\.conv)"
    rf"|mid_block\.(?:attentions\.0\.{_TRANSFORMER}|resnets\.[01]\.{_RESNET})"
)
_CLIP_LAYER = re.compile(rf"text_model\.encoder\.layers\.{NUMBER}\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])")


@dataclass(frozen=True, slots=True)
class PartNames:
    """How the layers of one network of a model are called."""

    kohya_prefix: str
    layers: re.Pattern[str]  # the paths, in diffusers or transformers, at which a LoRA may sit
    other_prefixes: tuple[str, ...] = ()  # that kohya files of other programs have; only read
    sgm: bool = False  # whether kohya files name the U-Net's blocks as the original code does

    def to_kohya(self, path: str) -> str:
        """`lora_unet_down_blocks_0_...` for `down_blocks.0....`; of SDXL `lora_unet_input_blocks_1_...`."""
        return self.kohya_prefix + (to_sgm(path) if self.sgm else path).replace(".", "_")

    def from_kohya(self, name: str) -> str | None:
        """The inverse, for every spelling that programs write; None where it names no layer of this part."""
        for prefix in (self.kohya_prefix, *self.other_prefixes):
            if not name.startswith(prefix):
                continue
            module = name.removeprefix(prefix)
            words = ".".join(_WORD.findall(module))
            path = from_sgm(words) if self.sgm else words
            # the way back must give the same name: `to__q` or `fc1_` would be read as something they are not
            if words.replace(".", "_") == module and self.layers.fullmatch(path):
                return path
        return None


@dataclass(frozen=True, slots=True)
class Naming:
    """The layers of one family. A layer's own name is `<part>.<path>`, such as `unet.mid_block.resnets.0.conv1`."""

    parts: Mapping[str, PartNames]

    def canonical(self, layer: str) -> str:
        """The layer's one name in our states and files.

        transformers before version 5 put `text_model.` before the paths inside CLIPTextModel, newer ones do not; the
        canonical name has it. Compare a live model's layers with a state's by their canonical names.

        Raises:
            WeightsError: this family has no such layer, or it is none that a LoRA sits at.
        """
        part, _, path = layer.partition(".")
        if part in self.parts:
            for candidate in (path, f"text_model.{path}"):
                if self.parts[part].layers.fullmatch(candidate):
                    return f"{part}.{candidate}"
        raise _unknown(layer)

    def to_kohya(self, layer: str) -> str:
        """The layer's name in kohya files.

        Raises:
            WeightsError: this family has no such layer.
        """
        part, _, path = self.canonical(layer).partition(".")
        return self.parts[part].to_kohya(path)

    def from_kohya(self, name: str) -> str:
        """Our canonical name of a layer out of a kohya file.

        Raises:
            WeightsError: this family has no such layer.
        """
        for part, names in self.parts.items():
            path = names.from_kohya(name)
            if path is not None:
                return f"{part}.{path}"
        raise _unknown(name)


def _unknown(name: str) -> WeightsError:
    return WeightsError(
        "This family has no such layer, or none that a LoRA can sit at.",
        where=printable(name[:200]),
        mend="Make sure that the file belongs to the family of the model.",
    )


_UNET_PREFIXES = ("lycoris_unet_", "lycoris_")  # of programs that call LyCORIS themselves

# Stable Diffusion 1.x and 2.x: kohya files use the U-Net's diffusers names.
SD_NAMES = Naming(
    parts=MappingProxyType(
        {
            "unet": PartNames(kohya_prefix="lora_unet_", layers=_UNET_LAYER, other_prefixes=_UNET_PREFIXES),
            # lora_te1_ is what diffusers' own converter of early 2024 wrote for SD1
            "text_encoder": PartNames(
                kohya_prefix="lora_te_", layers=_CLIP_LAYER, other_prefixes=("lora_te1_", "lycoris_te_")
            ),
        }
    )
)

# Stable Diffusion XL: kohya files use the original code's names of the U-Net's blocks; both are read.
SDXL_NAMES = Naming(
    parts=MappingProxyType(
        {
            "unet": PartNames(
                kohya_prefix="lora_unet_", layers=_XL_UNET_LAYER, other_prefixes=_UNET_PREFIXES, sgm=True
            ),
            "text_encoder": PartNames(kohya_prefix="lora_te1_", layers=_CLIP_LAYER, other_prefixes=("lycoris_te1_",)),
            "text_encoder_2": PartNames(kohya_prefix="lora_te2_", layers=_CLIP_LAYER, other_prefixes=("lycoris_te2_",)),
        }
    )
)
