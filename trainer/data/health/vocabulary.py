"""What the captions are made of: how often each tag stands in them, and which tags stand together."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from trainer.data.account import Account
from trainer.data.captions import CaptionRules
from trainer.data.health.findings import Finding, counted
from trainer.data.health.words import RulesOf
from trainer.data.tags import split_tags

_FEWEST: Final = 5  # pictures of a trigger before anything is said to be bound to it
_ALWAYS: Final = 0.95  # of a trigger's captions: what stands in so many is bound to it
_SHORT: Final = 3  # words of a tag; what is longer is a part of a sentence
_TOGETHER: Final = 16  # tags in the table of those that stand together
_LISTED: Final = 12  # tags that a sentence names
_SPELLING: Final = re.compile(r"[\s_]+")
_WORD: Final = re.compile(r"[^\W\d_][\w'-]+")
_STOP_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        "a an the and or of in on at to with by from for as is are was be it its this that these those his her their "
        "he she they there has have having into over under near while which who one two some other very",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tags, or in sentences the words, of the pictures that are learned: no regularisation, nothing held out."""

    captions: int = 0  # how many were read
    tagged: bool = True  # captions are lists of tags; else sentences, and these are words
    counts: dict[str, int] = field(default_factory=dict[str, int])  # in how many captions each stands, most first
    spellings: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])  # of tags that have several
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])  # by trigger: always with it
    top: tuple[str, ...] = ()  # the most frequent ones that tell captions apart
    together: tuple[tuple[int, ...], ...] = ()  # of `top` by `top`: captions in which both stand

    def as_json(self) -> dict[str, Any]:
        """The vocabulary as plain lists and numbers."""
        return {
            "captions": self.captions,
            "tagged": self.tagged,
            "counts": self.counts,
            "spellings": self.spellings,
            "fused": {trigger: list(terms) for trigger, terms in self.fused.items()},
            "together": {"terms": list(self.top), "counts": [list(row) for row in self.together]},
        }


def vocabulary_of(account: Account, rules_of: RulesOf) -> Vocabulary:
    """The tags of all captions that are learned from.

    Args:
        account: whose captions.
        rules_of: how the captions of a picture are treated.
    """
    tagged = _are_tags(account, rules_of)
    counter = _Counter()
    for terms, trigger in _learned(account, rules_of, tagged):
        counter.take(terms, trigger)
    captions = counter.captions.total()
    counts = sum(counter.terms.values(), Counter[str]())
    ordered = dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))
    fused = {trigger: counter.always(trigger) for trigger in counter.terms}
    top = _telling(ordered, captions)
    return Vocabulary(
        captions=captions,
        tagged=tagged,
        counts=ordered,
        spellings=counter.spellings() if tagged else {},
        fused={trigger: terms for trigger, terms in fused.items() if terms},
        top=top,
        together=_together(account, rules_of, tagged, top),
    )


def vocabulary_findings(vocabulary: Vocabulary) -> Iterator[Finding]:
    """Tags that are bound to a trigger, and tags that are written in several ways."""
    noun = "tags" if vocabulary.tagged else "words"
    for trigger, terms in vocabulary.fused.items():
        if len(terms) < len(vocabulary.counts):  # else all captions are the same, which is said elsewhere
            yield _fused(trigger, terms, noun)
    if vocabulary.spellings:
        ways = [" / ".join(f"{way!r} ({n})" for way, n in written.items()) for written in vocabulary.spellings.values()]
        yield Finding(
            kind="spellings",
            level="note",
            what=f"{counted(len(ways), 'tag is', 'tags are')} written in several ways: {_listed(ways)}.",
            mend="Write each in one way, without underscores: to the text encoder they may be different words.",
        )


def parts_of(caption: str, rules: CaptionRules) -> list[str]:
    """The tags of a caption as they are written; the marks between them are gone."""
    for mark in (rules.keep_separator, rules.secondary_separator):
        if mark.strip():
            caption = caption.replace(mark.strip(), rules.separator)
    return split_tags(caption, rules.separator)


@lru_cache(maxsize=1 << 16)
def spelled(tag: str) -> str:
    """One spelling for all ways to write a tag: `Blue_Eyes`, `blue  eyes` and `blue eyes` are the same."""
    plain = unicodedata.normalize("NFKC", tag).replace("\\(", "(").replace("\\)", ")")
    return _SPELLING.sub(" ", plain).strip().casefold()


@dataclass(slots=True)
class _Counter:
    """What a pass over the captions counts."""

    captions: Counter[str] = field(default_factory=Counter[str])  # by trigger
    terms: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])  # by trigger
    written: Counter[str] = field(default_factory=Counter[str])

    def take(self, terms: dict[str, str], trigger: str) -> None:
        """Count the terms of one caption, each with the way in which it is written."""
        self.captions[trigger] += 1
        self.terms.setdefault(trigger, Counter()).update(terms.keys())
        self.written.update(terms.values())

    def always(self, trigger: str) -> tuple[str, ...]:
        """The terms that stand in nearly all captions of a trigger."""
        captions = self.captions[trigger]
        if captions < _FEWEST:
            return ()
        return tuple(term for term, count in self.terms[trigger].most_common() if count >= _ALWAYS * captions)

    def spellings(self) -> dict[str, dict[str, int]]:
        """The terms that are written in more ways than one."""
        ways: dict[str, dict[str, int]] = {}
        for written, count in self.written.most_common():
            ways.setdefault(spelled(written), {})[written] = count
        return {term: ways[term] for term in sorted(ways) if len(ways[term]) > 1}


def _learned(account: Account, rules_of: RulesOf, tagged: bool) -> Iterator[tuple[dict[str, str], str]]:
    """Of each caption that is learned from: its terms, each with the way in which it is written, and its trigger."""
    for example in account.accepted:
        if example.regularisation or example.held_out:
            continue
        rules = rules_of(example)
        own = {spelled(rules.trigger), *_words(rules.trigger)}
        for caption in example.captions or (example.class_words,):
            parts = parts_of(caption, rules) if tagged else _words(caption)
            terms = {spelled(part): part for part in parts}
            if terms:
                yield {term: part for term, part in terms.items() if term and term not in own}, rules.trigger


def _fused(trigger: str, terms: tuple[str, ...], noun: str) -> Finding:
    what = f"These {noun} stand in nearly every caption"
    if not trigger:
        return Finding(
            kind="fused-tags",
            level="note",
            what=f"{what}: {_listed(terms)}. What all pictures share is bound to them.",
            mend="If one of them shall call it, set it as data.captions.trigger; leave the others out.",
        )
    return Finding(
        kind="fused-tags",
        level="note",
        what=f"{what} beside the trigger {trigger!r} and are fused with it: {_listed(terms)}. A prompt without them "
        "brings less of what was learned.",
        mend="Leave out what always belongs to it, so that the trigger alone brings it; keep what a prompt shall "
        "be able to change.",
    )


def _are_tags(account: Account, rules_of: RulesOf, most: int = 2000) -> bool:
    """Whether captions are rather lists of tags than sentences, by the first of them."""
    lists = sentences = 0
    for example in account.accepted[:most]:
        for caption in example.captions:
            parts = parts_of(caption, rules_of(example))
            short = sum(len(part.split()) <= _SHORT for part in parts)
            is_list = short * 2 > len(parts)
            lists, sentences = lists + is_list, sentences + (not is_list)
    return lists >= sentences


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text) if word.casefold() not in _STOP_WORDS]


def _telling(counts: dict[str, int], captions: int) -> tuple[str, ...]:
    """The most frequent terms; those that stand everywhere, or only once, tell nothing."""
    some = [term for term, count in counts.items() if 1 < count < _ALWAYS * captions]
    return tuple(some[:_TOGETHER])


def _together(account: Account, rules_of: RulesOf, tagged: bool, top: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    places = {term: place for place, term in enumerate(top)}
    table = [[0] * len(top) for _ in top]
    for terms, _ in _learned(account, rules_of, tagged):
        inside = [places[term] for term in terms if term in places]
        for one in inside:
            for other in inside:
                table[one][other] += 1
    return tuple(tuple(row) for row in table)


def _listed(terms: Iterable[str]) -> str:
    every = list(terms)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(every[:_LISTED]) + more
