"""What each tensor of an adapter file is for, by the end of its name; the tools spell it in many ways."""

from collections.abc import Mapping
from types import MappingProxyType

DOWN = "lora_A.weight"
UP = "lora_B.weight"
MIDDLE = "lora_mid.weight"
ALPHA = "alpha"
SCALE = "dora_scale"  # the magnitudes of a DoRA, with the axis that they stand for: [1 in] or [out 1]
VECTOR = "lora_magnitude_vector"  # the same as peft writes it: one number an output, whatever its shape
HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
TUCKER = ("hada_t1", "hada_t2", "lokr_t1", "lokr_t2")

_PAIRS = {
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_mid.weight": MIDDLE,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,  # diffusers of early 2023: `attn1.processor.to_q_lora.down.weight`
    "_lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
}
_VECTORS = ("", ".weight", ".default", ".default.weight")
ENDINGS: Mapping[str, str] = MappingProxyType(
    _PAIRS
    | {f".{VECTOR}{ending}": VECTOR for ending in _VECTORS}
    | {f".{role}": role for role in (ALPHA, SCALE, *HADAMARD, *KRONECKER, *TUCKER)}
)
"""End of a key -> role."""


def split_key(key: str) -> tuple[str, str] | None:
    """The module's name and the role of its tensor; None where the key belongs to no adapter."""
    for ending, role in ENDINGS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), role
    return None
