"""What the configuration of an adapter, in diffusers' header or beside peft's file, says of alpha and rank."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.core.errors import WeightsError
from trainer.core.files import printable

ADAPTER_METADATA = "lora_adapter_metadata"
"""The key of a safetensors header under which diffusers keeps peft's configurations."""


@dataclass(frozen=True, slots=True)
class Said:
    """What peft configurations say, by part; the part is empty where the file has one network only."""

    configurations: Mapping[str, Mapping[str, Any]]  # Any: JSON from outside, checked where it is used

    def alpha(self, layer: str, rank: int) -> float | None:
        """The alpha of a layer, in kohya's sense of a change multiplied by alpha / rank; None where nothing is said.

        Raises:
            WeightsError: what is said is no finite number, or its pattern is no plain name.
        """
        configuration = self._of(layer)
        word = "lora_alpha" if "lora_alpha" in configuration else "alpha"
        value = self._value(layer, word, "alpha_pattern")
        # rank-stabilised scaling, arXiv:2312.03732, divides by the root of the rank; in our terms alpha is greater
        return value if value is None or not configuration.get("use_rslora") else value * math.sqrt(rank)

    def rank(self, layer: str) -> float | None:
        """The rank that peft divides by, also where a layer's tensors have none."""
        value = self._value(layer, "r", "rank_pattern")
        if value is not None and value <= 0:
            raise WeightsError("The configuration of these weights gives a rank that is no rank.", where=layer)
        return value

    def _of(self, layer: str) -> Mapping[str, Any]:
        part = layer.partition(".")[0]
        return self.configurations.get(part, self.configurations.get("", {}))

    def _value(self, layer: str, word: str, pattern_word: str) -> float | None:
        configuration = self._of(layer)
        value = configuration.get(word)
        patterns = configuration.get(pattern_word)
        for pattern, special in patterns.items() if isinstance(patterns, dict) else ():
            if _means(str(pattern), layer.partition(".")[2]):
                value = special
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise WeightsError(f"The configuration of these weights gives a {word} that is no number.", where=layer)
        return float(value)


def said_in_header(path: Path, metadata: Mapping[str, str]) -> Said:
    """What diffusers keeps in the header of its files.

    Raises:
        WeightsError: it is no JSON object.
    """
    configurations: dict[str, dict[str, Any]] = {}
    if ADAPTER_METADATA in metadata:
        for key, value in _json_object(metadata[ADAPTER_METADATA], path).items():
            part, _, word = key.partition(".")
            configurations.setdefault(part, {})[word] = value
    return Said(configurations)


def said_beside(configuration: Path) -> Said:
    """What peft keeps beside its files; nothing where there is no such file.

    Raises:
        WeightsError: it is no JSON object.
    """
    if not configuration.is_file():
        return Said({})
    return Said({"": _json_object(configuration.read_text(encoding="utf-8", errors="replace"), configuration)})


def _means(pattern: str, path: str) -> bool:
    """Whether a peft pattern means a path. Plain names only: a foreign file's regular expressions are never run."""
    name = pattern.replace("\\.", ".").removeprefix("^").removesuffix("$")
    if not re.fullmatch(r"[\w.]+", name):
        raise WeightsError("The alpha pattern of this file is no plain name.", where=printable(pattern[:200]))
    return path == name or (path.endswith(f".{name}") and not pattern.startswith("^"))


def _json_object(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError("The adapter configuration of this file is no JSON.", where=str(path)) from error
    if not isinstance(value, dict):
        raise WeightsError("The adapter configuration of this file is no JSON object.", where=str(path))
    return value  # pyright: ignore[reportUnknownVariableType]
