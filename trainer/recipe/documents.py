"""YAML text -> plain values, with the line of every key; nothing else comes out of a file.

The rules are those of YAML 1.2's core schema, which JSON and editors share: only `true` and `false` are truth values,
so that a trigger word `no` stays a word, and `1e-3` is a number. Tags and aliases are refused: no recipe needs them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from trainer.core.files import printable
from trainer.recipe.mistakes import MOST, Mistake

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"
KeyPath: TypeAlias = tuple["str | int", ...]

_DEEPEST = 40
_LONGEST_NUMBER = 100
_NULL = {"", "~", "null", "Null", "NULL"}
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WHOLE = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# libyaml's parser where the wheel has it: 20 times quicker, the same events
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


@dataclass(slots=True)
class Document:
    """What was asked for, in plain values, and where each part of it was said."""

    source: str
    value: Plain = None
    lines: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])  # counted from 1
    orders: dict[KeyPath, str] = field(default_factory=dict[KeyPath, str])  # KEY=VALUE that set this part
    unread: set[KeyPath] = field(
        default_factory=set[KeyPath]
    )  # parts with a mistake of form; no second one is reported
    mistakes: list[Mistake] = field(default_factory=list[Mistake])

    def line(self, path: KeyPath) -> int | None:
        """The line of `path`, or of the nearest part around it; None if the command line said it."""
        return None if self._order(path) else next((self.lines[p] for p in _around(path) if p in self.lines), None)

    def where(self, path: KeyPath) -> str:
        """Where `path` was said, as a person finds it again."""
        order = self._order(path)
        return f"{shortened(order)} on the command line" if order else self._place(path, self.line(path))

    def refuse(self, path: KeyPath, what: str, mend: str, line: int | None = None) -> None:
        """Note a mistake of form at `path`; what stands there is not looked at again."""
        self.mistakes.append(Mistake(what, self._place(path, line or self.line(path)), mend, line=line or 0))
        self.unread.add(path)

    def is_unread(self, path: KeyPath) -> bool:
        """Whether `path` lies in a part with a mistake of form."""
        return () in self.unread or any(part in self.unread for part in _around(path))

    def _order(self, path: KeyPath) -> str | None:
        for part in _around(path):
            if part in self.orders:
                return self.orders[part]
            if part in self.lines:
                break
        if path in self.lines:
            return None
        # a block that exists only because an order speaks of something inside it
        return next((order for inside, order in self.orders.items() if path and inside[: len(path)] == path), None)

    def _place(self, path: KeyPath, line: int | None) -> str:
        place = self.source if line is None else f"{self.source}:{line}"
        return f"{place} ({dotted(path)})" if path else place


def dotted(path: KeyPath) -> str:
    """`path` as a person writes it: data.sources.0.path."""
    return ".".join(shortened(str(part)) for part in path)


def shortened(text: str, longest: int = 60) -> str:
    """`text` fit for a message: short, and without a sign that could paint the terminal."""
    return printable(text if len(text) <= longest else text[: longest - 1] + "…")


def _around(path: KeyPath) -> list[KeyPath]:
    """`path`, then all that lies around it, without the whole file."""
    return [path[:length] for length in range(len(path), 0, -1)]


def value_at(value: Plain, path: KeyPath) -> Plain:
    """The part of `value` at `path`; None where there is none."""
    for part in path:
        if isinstance(value, dict) and isinstance(part, str):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def read_document(text: str, source: str, at: KeyPath = ()) -> tuple[Document, Plain]:
    """The one value that `text` holds, as if it stood at `at`, beside a document with its lines and mistakes.

    A text that is no YAML at all gives a document with that one mistake.
    """
    document = Document(source)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        document.refuse(at, "This holds bytes that are no UTF-8.", "Write it in UTF-8.")
        return document, None
    composer = _Composer(text, document)
    try:
        return document, composer.compose(at)
    except _StopReadingError as stop:
        return document, stop.value
    except yaml.YAMLError as error:
        document.refuse(at, *_syntax(error), line=_line_of(error, text))
        return document, None


def scalar(text: str) -> Plain:
    """The value of an unquoted word, by YAML 1.2's core schema."""
    if text in _NULL:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _WHOLE.fullmatch(text):
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    if _NUMBER.fullmatch(text):
        return float(text)
    return float(text.lower().replace(".", "", 1)) if _NOT_FINITE.fullmatch(text) else text


class _StopReadingError(Exception):
    """What follows makes no sense any more; `value` was read so far."""

    def __init__(self, value: Plain = None) -> None:
        super().__init__()
        self.value = value


class _Composer:
    """Turns the parser's events into values; depth is limited, and nothing is ever expanded."""

    def __init__(self, text: str, document: Document) -> None:
        self.document = document
        self._events: Iterator[Event] = yaml.parse(text, Loader=_LOADER)  # pyright: ignore[reportUnknownMemberType]

    def compose(self, at: KeyPath) -> Plain:
        next(self._events)  # the start of the stream
        first = next(self._events)
        if isinstance(first, StreamEndEvent):
            return None
        value = self._node(next(self._events), at, depth=0)
        next(self._events)  # the end of the document
        if isinstance(another := next(self._events), DocumentStartEvent):
            line = _line(another)
            self._refuse(at, "A second document begins here.", "Write one document; remove the `---`.", line)
            raise _StopReadingError(value)
        return value

    def _refuse(self, path: KeyPath, what: str, mend: str, line: int) -> None:
        self.document.refuse(path, what, mend, line)
        if len(self.document.mistakes) >= MOST:
            raise _StopReadingError

    def _node(self, event: Event, path: KeyPath, depth: int) -> Plain:
        line = _line(event)
        self.document.lines.setdefault(path, line)
        if isinstance(event, AliasEvent):
            self._refuse(path, f"The alias `*{shortened(str(event.anchor))}` is refused.", "Write the value out.", line)
            return None
        if isinstance(event, (ScalarEvent, SequenceStartEvent, MappingStartEvent)) and event.tag is not None:
            tag = shortened(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self._refuse(path, f"The tag `{tag}` is refused.", "Remove the tag.", line)
        if depth > _DEEPEST:
            self._refuse(path[:1], f"This is nested more than {_DEEPEST} deep.", "Nothing needs that.", line)
            raise _StopReadingError
        if isinstance(event, SequenceStartEvent):
            return self._list(path, depth)
        if isinstance(event, MappingStartEvent):
            return self._mapping(path, depth)
        assert isinstance(event, ScalarEvent)  # noqa: S101  # the parser gives no other event here
        return scalar(event.value) if event.implicit[0] else event.value

    def _list(self, path: KeyPath, depth: int) -> Plain:
        values: list[Plain] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            values.append(self._node(event, (*path, len(values)), depth + 1))
        return values

    def _mapping(self, path: KeyPath, depth: int) -> Plain:
        values: dict[str, Plain] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            line = _line(event)
            if not isinstance(event, ScalarEvent):
                self._refuse(path, "A key must be a word.", "Write `key: value`; quote what holds {}.", line)
                raise _StopReadingError
            key = (*path, event.value)
            again = event.value in values
            if again:
                first = self.document.lines[key]
                self._refuse(
                    key, f"The key `{dotted(key)}` is given twice.", f"Keep one; the first is in line {first}.", line
                )
            else:
                self.document.lines[key] = line
            value = self._node(next(self._events), key, depth + 1)
            if not again:
                values[event.value] = value
        return values


def _line(event: Event) -> int:
    return 1 if event.start_mark is None else event.start_mark.line + 1


def _syntax(error: yaml.YAMLError) -> tuple[str, str]:
    problem = (error.problem if isinstance(error, yaml.MarkedYAMLError) else None) or "it holds control characters"
    mend = "Compare the line, and the one before it, with a recipe that works."
    if "tab" in problem.split():
        mend = "Indent with spaces, not tabs."
    elif "end of stream" in problem:
        mend = "Close the quotes or the bracket that begins here."
    elif "mapping values" in problem:
        mend = "Indent the keys of one block equally, and put text that holds ': ' in quotes."
    elif "cannot start any token" in problem:
        mend = "Indent with spaces, not tabs, and put text that begins with a special sign in quotes."
    elif "expected ',' or" in problem:
        mend = "Close the bracket, or put a comma between the entries."
    elif "block" in problem or "'-'" in problem:
        mend = "Indent the lines of one block equally."
    return f"This is no YAML: {printable(problem)}.", mend


def _line_of(error: yaml.YAMLError, text: str) -> int:
    if isinstance(error, yaml.MarkedYAMLError):
        # an unclosed bracket or quote is noticed later, at the latest at the end; it is mended where it began
        problem = error.problem_mark
        open_one = "expected ',' or" in (error.problem or "") or (problem and problem.line >= text.count("\n"))
        mark = error.context_mark if open_one and error.context_mark is not None else problem
        return 1 if mark is None else mark.line + 1
    if isinstance(error, yaml.reader.ReaderError):
        return text.encode("utf-8")[: error.position].count(b"\n") + 1
    return 1
