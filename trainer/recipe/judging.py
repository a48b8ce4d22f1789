"""Pydantic's errors -> mistakes in the words of the recipe: dotted keys, lines, ranges, nearest keys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainer.core.files import printable
from trainer.recipe.documents import Document, KeyPath, Plain, dotted, shortened, value_at
from trainer.recipe.mistakes import Mistake, nearest
from trainer.recipe.schema import Shape

_LONGEST_SHOWN = 40
_OWN_WORDS = {"value_error", "assertion_error"}  # raised by a validator of ours, which knows better


@dataclass(frozen=True, slots=True)
class _Finding:
    """Where an error of pydantic's points to, in the terms of the recipe."""

    path: KeyPath
    shape: Shape
    vague: bool = False  # somewhere inside one of several forms that are not told apart by a key


def judge(error: ValidationError, document: Document, shape: Shape) -> Iterator[Mistake]:
    """Every mistake that `error` speaks of, once each."""
    seen: set[tuple[KeyPath, str]] = set()
    for details in error.errors(include_url=False):
        finding = _find(details["loc"], document.value, shape)
        if finding is None or document.is_unread(finding.path):
            continue
        what, mend = _words(details, finding, document)
        if (finding.path, what) not in seen:
            seen.add((finding.path, what))
            yield Mistake(what, document.where(finding.path), mend, line=document.line(finding.path) or 0)


def shown(value: Plain) -> str:
    """`value` as a message names it: short, and without a sign that could paint the terminal."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "a block of keys"
    return f'the text "{shortened(value, _LONGEST_SHOWN)}"'


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The sentence that leads from a word that does not exist to those that do."""
    listed = f"Known here: {', '.join(known)}."
    close = nearest(word, known)
    return f"Did you mean `{close}`? {listed}" if close else listed


def _find(loc: Sequence[int | str], value: Plain, shape: Shape) -> _Finding | None:
    """Walk along pydantic's `loc`, which holds the kind of each union beside the keys.

    Where forms are not told apart by a key (`int | list`), the form of the value decides which one was meant; an error
    of another form gives None.
    """
    path: KeyPath = ()
    for position, part in enumerate(loc):
        if shape.kinds and part in shape.kinds:
            shape = shape.kinds[str(part)]
        elif shape.alternatives:
            meant = [choice for choice in shape.alternatives if choice.form == "object" and isinstance(value, dict)]
            if len(meant) != 1:
                return _Finding(path, shape, vague=True)
            if part != meant[0].node.get("title", part):
                return None
            shape = meant[0]
        else:
            inner = shape.inside(value, part)
            path = (*path, part)
            if inner is None:
                return _Finding(path, shape) if position == len(loc) - 1 else _Finding(path, shape, vague=True)
            shape, value = inner, value_at(value, (part,))
    return _Finding(path, shape)


def _words(details: ErrorDetails, finding: _Finding, document: Document) -> tuple[str, str]:
    """What is wrong, and how to mend it."""
    shape, name = finding.shape, dotted(finding.path) or "the recipe"
    value = value_at(document.value, finding.path)
    if details["type"] == "extra_forbidden":
        kinds = shape.keys["kind"].allowed if "kind" in shape.keys else ()
        kind = f" for kind `{kinds[0]}`" if kinds else ""
        return f"There is no key `{name}`{kind}.", _mend_unknown(finding.path, shape)
    if details["type"] == "missing":
        return f"The key `{name}` is missing.", " ".join(["Write it:", f"{shape.words}.", _first_line(shape)]).strip()
    if details["type"] == "union_tag_not_found":
        return f"`{name}` needs a `{shape.discriminator}`.", f"Choose among: {', '.join(shape.kinds)}."
    if details["type"] == "union_tag_invalid":
        tag = value_at(value, (shape.discriminator,))
        return f"`{name}` has no kind `{shortened(str(tag))}`.", did_you_mean(str(tag), list(shape.kinds))
    if details["type"] in _OWN_WORDS:
        cause = details.get("ctx", {}).get("error", details["msg"])
        return "\n".join(map(printable, str(cause).splitlines())), f"See `trainer explain {name}`."
    if details["type"] == "finite_number":
        return f"`{name}` must be a finite number, but is {shown(value)}.", "Write a number."
    return f"`{name}` must be {shape.words}, but is {shown(value)}.", _mend_value(value, shape, name)


def _mend_unknown(path: KeyPath, shape: Shape) -> str:
    """The nearest key beside it, or the place where a key of that name does exist."""
    word, here = str(path[-1]), list(shape.keys)
    if nearest(word, here) is None:
        places = (place for place in _paths_to(word, Shape(shape.root, shape.root), depth=3) if place != dotted(path))
        if (place := next(places, None)) is not None:
            return f"Did you mean `{place}`? Known here: {', '.join(here)}."
    return did_you_mean(word, here)


def _paths_to(word: str, shape: Shape, depth: int, prefix: KeyPath = ()) -> Iterator[str]:
    for inside in (shape, *shape.kinds.values()):
        if word in inside.keys:
            yield dotted((*prefix, word))
        if depth:
            for key, inner in inside.keys.items():
                yield from _paths_to(word, inner, depth - 1, (*prefix, key))


def _mend_value(value: Plain, shape: Shape, name: str) -> str:
    explain = f"See `trainer explain {name}`."
    if shape.allowed and isinstance(value, str):
        close = nearest(value, [str(word) for word in shape.allowed])
        return f"Did you mean `{close}`?" if close else explain
    if shape.form == "string" and isinstance(value, (bool, int, float)):
        return f'Put text that looks like a number or a truth value in quotes: "{str(value).lower()}".'
    if shape.form == "boolean" and isinstance(value, str):
        return "Write true or false."
    if shape.form in ("integer", "number") and isinstance(value, str) and _is_number(value):
        return "Remove the quotes."
    if value is None:
        return "Give it a value, or remove the line."
    return f"Write {_example(shape)}." if shape.is_list and not isinstance(value, list) else explain


def _example(shape: Shape) -> str:
    entry = cast("Shape", shape.entry()) if shape.entry() else None
    return "a list, such as [one, two]" if entry is None or entry.form == "string" else "a list in brackets: [...]"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_line(shape: Shape) -> str:
    return shape.description.split("\n", 1)[0]
