"""A recipe as a table: every key, what it is, and what it would be if nothing were said."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import PydanticUndefined, to_jsonable_python

from trainer.core.redacting import redacted
from trainer.core.settings import Settings
from trainer.recipe.parsing import inline

_LETTERS: Final = 400  # of a value
_REQUIRED: Final = "must be said"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSetting:
    """One key of a recipe."""

    key: str  # dotted
    value: str
    default: str
    differs: bool


def settings_shown(settings: Settings) -> list[ShownSetting]:
    """All keys in their order; without secrets, and with absolute paths cut to their last name."""
    return list(_keys(settings, None, redacted(settings.model_dump(mode="json")), ""))


# Any: what a dump holds is known to pydantic alone
def _keys(settings: Settings, usual: Settings | None, dumped: Any, under: str) -> Iterator[ShownSetting]:
    """The keys of `settings`, whose defaults are those of `usual`, or else of its class."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)  # by the name of a field
        default = getattr(usual, name) if usual is not None else field.get_default(call_default_factory=True)
        key, shown = f"{under}{name}", dumped[name] if isinstance(dumped, dict) else dumped
        if isinstance(value, Settings):
            same = type(default) is type(value)
            if not same and "kind" in type(value).model_fields:
                yield _shown(f"{key}.kind", shown["kind"], getattr(default, "kind", PydanticUndefined), differs=True)
            yield from _keys(value, default if same else None, shown, f"{key}.")
        elif name != "kind" or usual is not None:  # else it is told above
            yield _shown(key, shown, default, differs=value != default)


def _shown(key: str, value: Any, default: Any, *, differs: bool) -> ShownSetting:
    return ShownSetting(
        key=key,
        value=_text(value),
        default=_REQUIRED if default is PydanticUndefined else _text(_plain(default)),
        differs=differs,
    )


def _plain(default: Any) -> Any:
    if isinstance(default, Settings):
        return redacted(default.model_dump(mode="json"))
    return redacted({"": to_jsonable_python(default)})[""]


def _text(value: Any) -> str:
    text = inline(value)
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}…"
