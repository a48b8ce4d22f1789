"""Every key of a recipe in words: type, limits, default, kinds, and what it is for."""

import json
import textwrap
from collections.abc import Iterator, Sequence

from trainer.core.errors import RecipeError
from trainer.core.files import printable
from trainer.core.settings import Settings
from trainer.recipe.mistakes import nearest
from trainer.recipe.schema import Shape

_WIDTH = 110
_LONGEST_DEFAULT = 60


def explain(settings: type[Settings], key: str | None = None) -> list[str]:
    """The lines that explain `key` and all inside it; without a key, the whole of `settings`.

    A list's entries are N (data.sources.N.path); the keys of one kind stand behind its name or directly
    (adapter.lora.rank or adapter.rank).

    Raises:
        RecipeError: there is no such key.
    """
    whole = Shape.of(settings)
    if key is None:
        return list(_inside(whole, "", ""))
    lines: list[str] = []
    for name, shape, is_kind in _found(key, whole):
        lines += [*_kind(shape, name, name.rsplit(".", 1)[-1], "")] if is_kind else [*_entry(shape, name, "")]
    return lines


def _found(key: str, whole: Shape) -> list[tuple[str, Shape, bool]]:
    """Every place that `key` may mean: (its name, its shape, whether it names a kind)."""
    places: list[tuple[str, Shape, bool]] = [("", whole, False)]
    for part in key.split("."):
        reached = [place for name, shape, _ in places for place in _steps(name, shape, part)]
        if not reached:
            name = places[0][0]
            known = sorted({word for _, shape, _ in places for word in _known(shape)})
            close = nearest(part, known)
            guess = f"Did you mean `{f'{name}.{close}' if name else close}`? " if close else ""
            raise RecipeError(
                f"There is no key `{printable(key)}`.",
                where=f"`{printable(part)}` in `{name}`" if name else "the whole of a recipe",
                mend=f"{guess}Known here: {', '.join(known) or 'nothing more'}.",
            )
        places = reached
    return places


def _steps(name: str, shape: Shape, part: str) -> Iterator[tuple[str, Shape, bool]]:
    """Where `part` leads from `shape`; the N of a list may be left out."""
    if shape.is_list and (entry := shape.entry()) is not None:
        if part == "N" or part.isdecimal():
            yield f"{name}.N", entry, False
        else:
            yield from _steps(f"{name}.N", entry, part)
    elif part in shape.kinds:
        yield f"{name}.{part}", shape.kinds[part], True
    else:
        for choice in (shape, *shape.alternatives):
            for kind, inside in {"": choice, **choice.kinds}.items():
                if part in inside.keys:
                    yield ".".join(word for word in (name, kind, part) if word), inside.keys[part], False


def _known(shape: Shape) -> Iterator[str]:
    entry = shape.entry() if shape.is_list else None
    if entry is not None:
        yield from _known(entry)
        return
    yield from shape.kinds
    for inside in (shape, *shape.alternatives, *shape.kinds.values()):
        yield from inside.keys


def _inside(shape: Shape, name: str, indent: str) -> Iterator[str]:
    """The lines on what lies inside `shape`: its keys, its kinds, its entries."""
    for key, inner in shape.keys.items():
        if key != "kind" or not inner.allowed:
            yield from _entry(inner, f"{name}.{key}" if name else key, indent)
    for kind, inner in shape.kinds.items():
        yield from _kind(inner, name, kind, indent)
    for choice in shape.alternatives:
        yield from _inside(choice, name, indent)
    if shape.is_list and (entry := shape.entry()) is not None:
        yield from _inside(entry, f"{name}.N", indent)


def _entry(shape: Shape, name: str, indent: str) -> Iterator[str]:
    """The lines on one key and all inside it."""
    default = _default(shape) if shape.has_default else "required" if shape.required else ""
    yield f"{indent}{name}: {shape.words}{'; ' if default else ''}{default}"
    yield from _wrapped(shape.description, indent + "    ")
    yield from _inside(shape, name, indent + "  ")


def _kind(shape: Shape, name: str, kind: str, indent: str) -> Iterator[str]:
    yield f"{indent}{name} of kind {kind}:"
    yield from _wrapped(shape.description, indent + "    ")
    yield from _inside(shape, name, indent + "  ")


def _default(shape: Shape) -> str:
    """The default as a recipe would say it; of a block only its kind, since its keys follow below."""
    default = shape.default
    if isinstance(default, dict) and (shape.kinds or shape.keys):
        return f"default kind {default['kind']}" if shape.kinds else ""
    words = default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)
    return f"default {words if len(words) <= _LONGEST_DEFAULT else words[:_LONGEST_DEFAULT] + '…'}"


def _wrapped(text: str, indent: str) -> Sequence[str]:
    return [
        line
        for paragraph in text.split("\n\n")
        for line in textwrap.wrap(paragraph, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    ]
