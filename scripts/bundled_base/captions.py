"""What is said about a picture of the corpus, and how often the picture is drawn."""

import random
import re
from dataclasses import dataclass
from pathlib import Path

TRAINED_STYLES = ("noto style", "flat style", "3d style")
AVATAR_STYLES = ("pixel art", "peeps style")

PEOPLE_WEIGHT = 0.2  # hundreds of near-equal professions would crowd out animals and things
AVATAR_WEIGHT = 0.15
# What hours on a CPU cannot teach for a thousand things they can for two hundred: those that people ask for.
CORE_WEIGHT = 8.0
CORE_LABELS = frozenset(Path(__file__).with_name("core_labels.txt").read_text(encoding="utf-8").strip().split("\n"))

_PEOPLE = re.compile(r"\b(man|woman|men|women|person|people|boy|girl|child)\b")


@dataclass(frozen=True)
class Entry:
    """One picture of the corpus in words; its pixels lie at the same index of the picture array."""

    label: str
    tags: tuple[str, ...]
    style: str
    kind: str  # "emoji" or "avatar"

    @property
    def shows_people(self) -> bool:
        """Whether the label names a human being."""
        return self.kind == "emoji" and _PEOPLE.search(self.label) is not None


def sampling_weight(entry: Entry) -> float:
    """Return how often an entry is drawn in training; 0 for the styles that are kept out of it."""
    if entry.kind == "avatar":
        return AVATAR_WEIGHT
    if entry.style not in TRAINED_STYLES:
        return 0.0
    if entry.label in CORE_LABELS:
        return CORE_WEIGHT
    return PEOPLE_WEIGHT if entry.shows_people else 1.0


def _avatar_caption(entry: Entry, rng: random.Random) -> str:
    attributes = list(entry.tags)
    rng.shuffle(attributes)
    if rng.random() < 0.5:
        attributes = attributes[: rng.randint(2, len(attributes))]
    opening = rng.choice(["person with ", "a person with ", "person, ", "portrait of a person, "])
    sentence = opening + ", ".join(attributes)
    if rng.random() < 0.1:
        return sentence
    return f"{sentence}, {entry.style}" if rng.random() < 0.8 else f"{entry.style}, {sentence}"


def _emoji_caption(entry: Entry, rng: random.Random) -> str:
    label, style = entry.label, entry.style
    article = "an" if label[0] in "aeiou" else "a"
    keywords = [tag for tag in entry.tags if tag != label]
    draw = rng.random()
    if draw < 0.50:
        return f"{label}, {style}"
    if draw < 0.70:
        return f"{article} {label}, {style}"
    if draw < 0.84 and keywords:
        chosen = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
        return f"{label}, {', '.join(chosen)}, {style}"
    if draw < 0.92:
        return rng.choice([label, f"{article} {label}", f"{label} emoji"])
    return f"{style}, {label}"


def draw_caption(entry: Entry, rng: random.Random) -> str:
    """Return one of the many ways to describe an entry, so that word order and articles do not matter."""
    return _avatar_caption(entry, rng) if entry.kind == "avatar" else _emoji_caption(entry, rng)
