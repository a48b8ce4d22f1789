"""Names and keywords of emoji, from emojibase."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# emojibase's numbers: smileys, people, animals, food, travel, activities, objects
_GROUPS = {0, 1, 3, 4, 5, 6, 7}
_GEOMETRIC_SHAPES = 96  # of the symbols only "red circle", "blue square" and their like are pictures
_DROPPED_SUBGROUPS = {30, 31, 58}  # families, symbols of people, clock faces


@dataclass(frozen=True)
class EmojiName:
    """What one emoji shows."""

    label: str
    tags: tuple[str, ...]


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _code(text: str) -> str:
    # FE0F only asks for a coloured drawing; sets disagree on writing it
    return text.lower().replace("-fe0f", "")


def _wanted(item: dict[str, Any]) -> bool:  # JSON of emojibase
    group, subgroup = item.get("group"), item.get("subgroup")
    if group is None or subgroup in _DROPPED_SUBGROUPS:
        return False
    return group in _GROUPS or subgroup == _GEOMETRIC_SHAPES


class EmojiNames:
    """Finds an emoji by any of its names or by its code points."""

    def __init__(self, npm_folder: Path) -> None:
        folder = npm_folder / "node_modules" / "emojibase-data" / "en"
        items = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        self._by_name: dict[str, EmojiName] = {}
        self._by_code: dict[str, EmojiName] = {}
        for item in filter(_wanted, items):
            label = item["label"].lower().replace("’", "'")
            name = EmojiName(re.sub("[“”:]", "", label), tuple(tag.lower() for tag in item.get("tags", [])))
            self._by_name[_letters(item["label"])] = name
            self._by_code[_code(item["hexcode"])] = name
        shortcodes = json.loads((folder / "shortcodes" / "emojibase.json").read_text(encoding="utf-8"))
        for code, aliases in shortcodes.items():
            name = self._by_code.get(_code(code))
            for alias in [aliases] if isinstance(aliases, str) else aliases:
                if name is not None:
                    self._by_name.setdefault(_letters(alias), name)

    def by_name(self, name: str) -> EmojiName | None:
        """Return the emoji of a label or shortcode in any spelling, or None where it is left out."""
        return self._by_name.get(_letters(name))

    def by_code(self, code: str) -> EmojiName | None:
        """Return the emoji of hyphenated code points, or None where it is left out."""
        return self._by_code.get(_code(code))
