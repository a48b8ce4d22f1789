"""One layer, its name in each tool: ours (peft's, after the part), and kohya's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from trainer.core.errors import WeightsError
from trainer.core.files import printable

# Words of the craft that hold an underscore themselves; all other underscores in a kohya name were once dots.
_COMPOUNDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v",
    "to_out", "time_emb_proj", "conv_shortcut", "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
)  # fmt: skip
_WORD = re.compile(rf"(?:^|_)({'|'.join(_COMPOUNDS)}|[a-z0-9]+)(?=_|$)")

_UNET_LAYER = re.compile(
    r"(?:(?:down|up)_blocks\.[0-9]+|mid_block)\."
    r"(?:attentions\.[0-9]+\.(?:proj_(?:in|out)|transformer_blocks\.[0-9]+\.(?:attn[12]\.to_(?:[qkv]|out\.0)|ff\.net\.(?:0\.proj|2)))"
    r"|resnets\.[0-9]+\.(?:conv[12]|conv_shortcut|time_emb_proj)"
    r"|(?:down|up)samplers\.[0-9]+\.conv)"
)
_CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.[0-9]+\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])")


@dataclass(frozen=True, slots=True)
class PartNames:
    """How the layers of one network of a model are called."""

    kohya_prefix: str
    layers: re.Pattern[str]  # the paths, in diffusers or transformers, at which a LoRA may sit
    renamed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Beginnings of our paths -> what stands for them in kohya files, both with dots; for SDXL's SGM names."""

    def to_kohya(self, path: str) -> str:
        """`lora_unet_down_blocks_0_...` for `down_blocks.0....`."""
        return self.kohya_prefix + _with_other_beginning(path, self.renamed, ".").replace(".", "_")

    def from_kohya(self, name: str) -> str:
        """The inverse; what is no layer comes back as a path that `layers` does not know."""
        ours_for = {theirs.replace(".", "_"): ours.replace(".", "_") for ours, theirs in self.renamed.items()}
        return ".".join(_WORD.findall(_with_other_beginning(name.removeprefix(self.kohya_prefix), ours_for, "_")))


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
            # the way back must give the same name: `to__q` or `fc1_` would be read as something they are not
            if name.startswith(names.kohya_prefix) and names.layers.fullmatch(path) and names.to_kohya(path) == name:
                return f"{part}.{path}"
        raise _unknown(name)


def _with_other_beginning(name: str, beginnings: Mapping[str, str], separator: str) -> str:
    """`name` with its longest known beginning replaced; beginnings end at a separator."""
    for old in sorted(beginnings, key=len, reverse=True):
        if f"{name}{separator}".startswith(f"{old}{separator}"):
            return beginnings[old] + name[len(old) :]
    return name


def _unknown(name: str) -> WeightsError:
    return WeightsError(
        "This family has no such layer, or none that a LoRA can sit at.",
        where=printable(name[:200]),
        mend="Make sure that the file belongs to the family of the model.",
    )


# Stable Diffusion 1.x and 2.x: kohya files use the U-Net's diffusers names.
SD_NAMES = Naming(
    parts=MappingProxyType(
        {
            "unet": PartNames(kohya_prefix="lora_unet_", layers=_UNET_LAYER),
            "text_encoder": PartNames(kohya_prefix="lora_te_", layers=_CLIP_LAYER),
        }
    )
)
