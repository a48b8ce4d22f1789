"""Text -> settings, or one error that names every mistake; and back."""

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from trainer.core.errors import TrainerError
from trainer.core.settings import Settings
from trainer.recipe.documents import Document, Plain, read_document, scalar
from trainer.recipe.judging import judge
from trainer.recipe.mistakes import MOST, Mistake, RecipeMistakesError
from trainer.recipe.overriding import lay_over
from trainer.recipe.schema import Shape

_EXACT = 2**53  # whole numbers below are exact as floats
_SHORT = 80

Some = TypeVar("Some", bound=Settings)


def read_settings(text: str, source: str, overrides: Sequence[str], settings: type[Some]) -> Some:
    """The settings that `text` asks for; `source` names it in messages.

    Values are held to the JSON forms of the schema: "8" is no number and 1 is no truth value.

    Raises:
        RecipeMistakesError: all that is wrong with the text and the overrides.
    """
    document, value = read_document(text, source)
    if not isinstance(value, dict):
        if not document.mistakes:
            document.refuse((), *_no_mapping(value))
        raise RecipeMistakesError(source, document.mistakes)
    document.value = value
    shape = Shape.of(settings)
    lay_over(document, overrides, shape)
    return _validated(document, shape, settings)


def write_settings(settings: Settings) -> str:
    """`settings` as YAML, every default written out; reading it gives equal settings."""
    # Any: what a dump holds is known to pydantic alone
    content: dict[str, Any] = settings.model_dump(mode="json")
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def inline(value: Plain) -> str:
    """`value` on one line, quoted where it must be; stands inside brackets as well as behind a key."""
    # in a list, since a word alone ends in a document mark
    line = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9)
    return line.strip()[1:-1]


def _validated(document: Document, shape: Shape, settings: type[Some]) -> Some:
    found: Iterable[Mistake] = ()
    try:
        checked = settings.model_validate_json(json.dumps(_as_json(document.value)), strict=True)
    except ValidationError as error:
        found = list(islice(judge(error, document, shape), MOST))
    except TrainerError as error:  # out of a validator that has its own message
        found = [Mistake(error.what, f"{document.source} ({error.where})", error.mend or "Change it.")]
    else:
        if not document.mistakes:
            return checked
    raise RecipeMistakesError(document.source, [*document.mistakes, *found])


def _as_json(value: Plain) -> Plain:
    """`value` with whole floats as integers, which JSON's schema holds for the same: `steps: 1e3` is 1000 steps."""
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    if isinstance(value, float) and abs(value) < _EXACT and value.is_integer():
        return int(value)
    return value


def _no_mapping(value: Plain) -> tuple[str, str]:
    if value is None:
        return "The recipe is empty.", "Write keys and values; `trainer init` writes a recipe to begin with."
    return "The recipe is no block of keys.", "Write lines such as `steps: 1000`; `trainer explain` lists the keys."


class _Dumper(yaml.SafeDumper):
    """Writes block style, and short lists of words on one line; quotes what this house would read as no text."""

    def ignore_aliases(self, data: Any) -> bool:  # Any: PyYAML's annotation
        """Always: equal parts are written out, since aliases are refused."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if scalar(text) != text or not text.replace("\n", "").isprintable():
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def _represent_list(dumper: yaml.SafeDumper, values: list[Plain]) -> yaml.SequenceNode:
    plain = not any(isinstance(value, (dict, list)) for value in values)
    short = plain and sum(len(str(value)) + 2 for value in values) <= _SHORT
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True if short else None)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
