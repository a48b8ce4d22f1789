"""The configurations that our checkpoints carry in their header, since no shape tells of heads, groups and factors."""

import json
from collections.abc import Mapping
from typing import Any, Final, cast

CONFIGS_KEY: Final = "trainer.configs"
"""Where the header holds them: one JSON object, part -> configuration, with `scheduler` among them."""

# paths of the machine, versions, and what follows from the weights
_PRIVATE = frozenset({"_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype"})
_MOST_LETTERS = 1_000_000


def published(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what tells of the machine that it was made on."""
    return {key: value for key, value in sorted(config.items()) if key not in _PRIVATE}


def as_text(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Configurations as the header holds them."""
    return json.dumps({part: published(config) for part, config in sorted(configs.items())}, separators=(",", ":"))


def configs_in(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The configurations in a header; none where it is not ours, or not readable."""
    text = metadata.get(CONFIGS_KEY, "")
    if not text or len(text) > _MOST_LETTERS:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    parts = cast("dict[str, Any]", found)  # JSON's keys are text
    return {part: cast("dict[str, Any]", config) for part, config in parts.items() if isinstance(config, dict)}
