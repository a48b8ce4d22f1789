"""What is wrong with single captions: no words, file names, links, another program's marks, a missing trigger."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from trainer.data.account import Account
from trainer.data.captions import CaptionRules, has_trigger
from trainer.data.example import Example
from trainer.data.health.findings import Finding, Level, about, counted
from trainer.data.wildcards import has_choices

RulesOf = Callable[[Example], CaptionRules]

_FEWEST: Final = 3  # captions of which it can be said that they are all alike
_FILE_NAME: Final = re.compile(
    r"""(?ix)
    (?:img|dsc[nf]?|pxl|vid|mvimg|p\d{3,}|screen[ ]?shot|image|photo|picture|untitled|download)?
    [-_ ()]*[\d][-\d_ .():T]*                   # IMG_0042, DSC00012, 20240131_120000, image (3), Screenshot 2024-01-31
    |(?=\S*\d)[0-9a-f]{8,}(?:-[0-9a-f]{4,})*    # hashes and UUIDs
    |.+\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif)
    """
)
_LINK: Final = re.compile(r"(?i)\bhttps?://|\bwww\.\w")
_WEIGHTED: Final = re.compile(r"(?i)\([^()]+:\s*\d?\.\d+\s*\)|<(?:lora|lyco|hypernet):[^>]*>")
_REFUSAL: Final = re.compile(r"(?i)^(?:i'm sorry|i am sorry|sorry,|i cannot|i can't|i am unable|i'm unable|as an ai\b)")
_MARKUP: Final = re.compile(
    r"(?i)</?(?:p|b|i|br|a|div|span|strong|em|h\d|img|ul|li)\b[^>]*>|&(?:amp|lt|gt|quot|nbsp|#\d+);"
)
_OPENING: Final = re.compile(
    r"(?i)^(?:in (?:this|the) (?:image|photo|picture)\b|(?:this|the|an?) (?:\w+ )?(?:image|photo|photograph|picture)"
    r" (?:of|shows|features|depicts|is|captures|showcases)\b)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """Something that may be wrong with the words of one picture."""

    kind: str
    level: Level
    applies: Callable[[Example, CaptionRules], bool]
    what: str  # after the number of pictures
    mend: str
    least: float = 0.0  # of all pictures; rarer cases are not worth a word


def word_findings(account: Account, rules_of: RulesOf) -> Iterator[Finding]:
    """What is wrong with the captions, each sort of mistake once.

    Args:
        account: whose captions.
        rules_of: how the captions of a picture are treated.
    """
    census = Census()
    for place, example in enumerate(account.accepted):
        census.take(place, example, rules_of(example))
    yield from _triggers(account, census)
    yield from _alike(account, census)
    for concern in CONCERNS:
        places = census.concerned[concern.kind]
        if places and len(places) > concern.least * len(account.accepted):
            yield about(
                account,
                places,
                Finding(
                    kind=concern.kind,
                    level=concern.level,
                    what=f"{counted(len(places), 'picture')}: {concern.what}",
                    mend=concern.mend,
                ),
            )


@dataclass(slots=True)
class Census:
    """What one pass over the captions counts."""

    learned: int = 0  # pictures that are trained on and are no regularisation
    untriggered: int = 0  # of them, those whose rules have no trigger
    lacking: dict[str, list[int]] = field(default_factory=dict[str, list[int]])  # by trigger
    bleeding: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    texts: Counter[str] = field(default_factory=Counter[str])  # the first captions of learned pictures
    concerned: dict[str, list[int]] = field(default_factory=lambda: {concern.kind: [] for concern in CONCERNS})

    def take(self, place: int, example: Example, rules: CaptionRules) -> None:
        """Count one picture."""
        written = example.captions or (example.class_words,)
        if example.regularisation:
            if rules.trigger and any(has_trigger(text, rules.trigger) for text in written):
                self.bleeding.setdefault(rules.trigger, []).append(place)
        elif not example.held_out:
            self.learned += 1
            self.untriggered += not rules.trigger
            self.texts[example.caption] += 1
            around = f"{rules.prefix} {rules.suffix}"
            if rules.trigger and not all(has_trigger(f"{text} {around}", rules.trigger) for text in written):
                self.lacking.setdefault(rules.trigger, []).append(place)
        for concern in CONCERNS:
            if concern.applies(example, rules):
                self.concerned[concern.kind].append(place)


def looks_like_file_name(caption: str, name: str) -> bool:
    """Whether a caption is the name of its own file, of any picture file, or what cameras and programs call files."""
    stem = name.rpartition("/")[2].rpartition(".")[0]
    # A name of several words, or of letters alone, may well be meant: that of `red-car.png` is a fair caption.
    own = caption == stem and any(sign.isdigit() for sign in stem) and " " not in stem
    return own or _FILE_NAME.fullmatch(caption) is not None


def _triggers(account: Account, census: Census) -> Iterator[Finding]:
    if census.untriggered and census.untriggered == census.learned:
        yield Finding(
            kind="no-trigger",
            level="note",
            what="No trigger word is set.",
            mend="Set data.captions.trigger to a rare word, so that a prompt can call what was learned.",
        )
    for trigger, places in census.lacking.items():
        number = counted(len(places), "caption lacks", "captions lack")
        what = f"{number} the trigger {trigger!r}; it is put in front."
        yield about(account, places, Finding(kind="trigger-missing", level="note", what=what))
    for trigger, places in census.bleeding.items():
        number = counted(len(places), "regularisation caption holds", "regularisation captions hold")
        what = f"{number} the trigger {trigger!r}."
        mend = "Take it out, or the trigger will call them too."
        yield about(account, places, Finding(kind="trigger-in-regularisation", level="warning", what=what, mend=mend))


def _alike(account: Account, census: Census) -> Iterator[Finding]:
    if census.learned < _FEWEST:
        return
    text, times = census.texts.most_common(1)[0]
    if not text or times * 2 <= census.learned:
        return
    every = times == census.learned
    part = "All" if every else f"{times:,} of {census.learned:,}"
    yield Finding(
        kind="identical-captions",
        level="warning" if every else "note",
        what=f"{part} captions are the same: {_short(text)!r}."
        + (" They teach no more than the trigger alone would." if every else ""),
        mend="Say in each what differs from picture to picture, so that a prompt can change it later"
        + (", or leave out the captions and set data.captions.trigger." if every else "."),
    )


def _any_matches(pattern: re.Pattern[str]) -> Callable[[Example, CaptionRules], bool]:
    return lambda example, rules: any(pattern.search(caption) for caption in example.captions)


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


CONCERNS: Final = (
    Concern(
        kind="file-name-captions",
        level="warning",
        applies=lambda example, rules: any(looks_like_file_name(text, example.name) for text in example.captions),
        what="the caption is a file name, not words.",
        mend="Write what is to be seen, or remove these captions and set data.captions.trigger.",
    ),
    Concern(
        kind="refused-captions",
        level="warning",
        applies=_any_matches(_REFUSAL),
        what="the caption is a captioner's excuse.",
        mend="Caption these pictures again, with another captioner or by hand.",
    ),
    Concern(
        kind="link-captions",
        level="warning",
        applies=_any_matches(_LINK),
        what="the caption holds a link.",
        mend="Take it out: the text encoder reads it letter by letter, and it uses up the tokens.",
    ),
    Concern(
        kind="markup-captions",
        level="warning",
        applies=_any_matches(_MARKUP),
        what="the caption holds HTML.",
        mend="Take it out: the text encoder reads it as words.",
    ),
    Concern(
        kind="weighted-captions",
        level="warning",
        applies=_any_matches(_WEIGHTED),
        what="the caption holds a prompt's weights, such as (word:1.2) or <lora:...>.",
        mend="Take them out: only programs that draw know them; here they are read as signs.",
    ),
    Concern(
        kind="unused-choices",
        level="warning",
        applies=lambda example, rules: not rules.wildcards and any(has_choices(text) for text in example.captions),
        what="the caption holds {a|b}, which is read as it stands.",
        mend="Set data.captions.wildcards=true if a choice is meant.",
    ),
    Concern(
        kind="opening-captions",
        level="note",
        applies=_any_matches(_OPENING),
        what="the caption opens like 'a photo of' or 'this image shows'.",
        mend="Where nearly all do, the words say nothing, and prompts without them will differ; leave them out.",
        least=0.5,
    ),
    Concern(
        kind="unused-class-words",
        level="note",
        applies=lambda example, rules: (
            bool(example.class_words and example.captions) and rules.class_words == "missing"
        ),
        what="the words in the folder's name are not used, since there are captions.",
        mend="Set data.captions.class_words=front to put them in front of the captions.",
    ),
    Concern(
        kind="several-captions",
        level="note",
        applies=lambda example, rules: len(example.captions) > 1,
        what="there are several captions.",
        mend="They take turns, unless data.captions.several says first or join.",
    ),
)
"""Everything that is looked for in the words of single pictures."""
