"""The one schema of a recipe: editors, `trainer explain`, messages and forms are all drawn from it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_jsonable_python

from trainer.core.settings import Settings

Schema: TypeAlias = dict[str, Any]  # Any: JSON, as the standard leaves it open

_LIMITS = (
    ("exclusiveMinimum", "above"),
    ("minimum", "of at least"),
    ("exclusiveMaximum", "below"),
    ("maximum", "of at most"),
)
_NAMES_OF_TYPES = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "null": "null"}


def json_schema(settings: type[Settings]) -> Schema:
    """The JSON schema (draft 2020-12) of `settings`: what an editor needs to complete and to check a recipe.

    It is stricter than the reader in one thing: where there are several kinds, `kind` must be written.
    """
    schema = settings.model_json_schema(schema_generator=_Tidy)
    for place in _objects(schema):
        for name in place.get("discriminator", {}).get("mapping", {}).values():
            kind = _resolve(schema, name)
            kind["required"] = sorted({*kind.get("required", ()), place["discriminator"]["propertyName"]})
    for place in _objects(schema):
        if isinstance(words := place.get("description"), str):
            place["description"] = re.sub(r"(?<!\n)\n(?!\n)\s*", " ", words)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text(settings: type[Settings]) -> str:
    """The schema as the file that editors read."""
    return json.dumps(json_schema(settings), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """What may stand at one place of a recipe."""

    root: Schema
    node: Schema
    nullable: bool = False
    required: bool = False

    @classmethod
    def of(cls, settings: type[Settings]) -> "Shape":
        """The shape of a whole file."""
        schema = json_schema(settings)
        return cls(schema, schema)

    def _of(self, node: Schema) -> "Shape":
        node = {**_resolve(self.root, node["$ref"]), **node} if "$ref" in node else node
        real = [choice for choice in node.get("anyOf", ()) if choice.get("type") != "null"]
        if len(real) == 1:
            around = {key: value for key, value in node.items() if key != "anyOf"}
            inner = self._of(real[0])
            return replace(inner, node={**inner.node, **around}, nullable=True)
        return Shape(self.root, node, nullable="anyOf" in node and len(real) < len(node["anyOf"]))

    @property
    def keys(self) -> dict[str, "Shape"]:
        """The keys that may stand here, each with its shape."""
        must = self.node.get("required", ())
        properties = self.node.get("properties", {})
        return {key: replace(self._of(node), required=key in must) for key, node in properties.items()}

    @property
    def kinds(self) -> dict[str, "Shape"]:
        """The kinds that may stand here, by the word that names each."""
        mapping = self.node.get("discriminator", {}).get("mapping", {})
        in_order = [choice.get("$ref") for choice in self.node.get("oneOf", ())]
        return {
            kind: self._of({"$ref": mapping[kind]})
            for kind in sorted(mapping, key=lambda k: in_order.index(mapping[k]))
        }

    @property
    def discriminator(self) -> str:
        """The key that tells the kinds apart."""
        return str(self.node["discriminator"]["propertyName"])

    @property
    def alternatives(self) -> list["Shape"]:
        """The forms that may stand here where they are several, and no key tells them apart."""
        return [self._of(node) for node in self.node.get("anyOf", ()) if node.get("type") != "null"]

    @property
    def is_list(self) -> bool:
        """Whether a list may stand here."""
        return self.node.get("type") == "array"

    def entry(self, index: int = 0) -> "Shape | None":
        """The shape of one entry of the list that stands here."""
        fixed = self.node.get("prefixItems", ())
        if index < len(fixed):
            return self._of(fixed[index])
        return self._of(self.node["items"]) if isinstance(self.node.get("items"), dict) else None

    @property
    def any_key(self) -> "Shape | None":
        """The shape of every value, where the keys are free."""
        free = self.node.get("additionalProperties")
        return self._of(free) if isinstance(free, dict) else None

    def inside(self, value: object, part: str | int) -> "Shape | None":
        """The shape of `part` of `value`, where `value` stands here; None if no such part may be."""
        if "discriminator" in self.node:
            kind = value.get(self.discriminator) if isinstance(value, dict) else None
            name = self.node["discriminator"]["mapping"].get(kind) if isinstance(kind, str) else None
            return None if name is None else self._of({"$ref": name}).inside(value, part)
        if self.alternatives:
            found = (choice.inside(value, part) for choice in self.alternatives)
            return next((shape for shape in found if shape is not None), None)
        if isinstance(part, int):
            return self.entry(part)
        properties = self.node.get("properties", {})
        return self._of(properties[part]) if part in properties else self.any_key

    @property
    def description(self) -> str:
        """What it is for."""
        return str(self.node.get("description", ""))

    @property
    def has_default(self) -> bool:
        """Whether the key may be left out."""
        return "default" in self.node

    @property
    def default(self) -> Any:  # Any: JSON
        """What holds when the key is left out."""
        return self.node.get("default")

    @property
    def allowed(self) -> list[Any]:  # Any: JSON
        """The only values that may stand here, if they are a few."""
        return [self.node["const"]] if "const" in self.node else list(self.node.get("enum", ()))

    @property
    def form(self) -> str:
        """The form of value, in JSON's words: array, object, string, ..."""
        if self.kinds or self.keys:
            return "object"
        return str(self.node.get("type", "string"))

    @property
    def words(self) -> str:
        """What may stand here, in words: "a whole number above 0"."""
        words = self._words()
        return f"{words} or null" if self.nullable else words

    def _words(self) -> str:
        if self.allowed:
            return " or ".join(f"`{value}`" for value in self.allowed)
        if self.kinds:
            return f"a block with a `{self.discriminator}` ({', '.join(self.kinds)})"
        if self.alternatives:
            return " or ".join(choice.words for choice in self.alternatives)
        if self.is_list:
            return self._list_words()
        if self.node.get("type") == "object":
            names = [key for key in self.keys if key != "kind"]
            return f"a block of keys ({', '.join(names)})" if names else "a block of keys"
        if self.node.get("type") == "string":
            return self._text_words()
        limits = [f"{word} {self.node[key]}" for key, word in _LIMITS if key in self.node]
        return " ".join([_NAMES_OF_TYPES.get(self.form, "a value"), " and ".join(limits)]).strip()

    def _list_words(self) -> str:
        if fixed := self.node.get("prefixItems"):
            return f"a list of {len(fixed)}: {', '.join(self._of(node).words for node in fixed)}"
        least, entry = self.node.get("minItems"), self.entry()
        return (f"a list of at least {least}" if least else "a list") + (f", each {entry.words}" if entry else "")

    def _text_words(self) -> str:
        words = "a path" if self.node.get("format") in ("path", "file-path", "directory-path") else "text"
        if "pattern" in self.node:
            words += f" of the form {self.node['pattern']}"
        return f"{words} that is not empty" if self.node.get("minLength") == 1 else words


class _Tidy(GenerateJsonSchema):
    """Pydantic's own schema, without titles that repeat the key, and with the defaults that are built."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # Any: pydantic's union of all its schemas
        """Never: `Gradient Checkpointing` says no more than `gradient_checkpointing`."""
        return False

    def get_default_value(self, schema: Any) -> Any:  # Any: pydantic's own annotation
        """The default as it stands in a recipe, also where it is built anew for every recipe."""
        if "default_factory" in schema and not schema.get("default_factory_takes_data"):
            return to_jsonable_python(schema["default_factory"]())
        return super().get_default_value(schema)


def _resolve(root: Schema, name: str) -> Schema:
    return root["$defs"][name.removeprefix("#/$defs/")]


def _objects(value: Any) -> Iterator[Schema]:  # Any: JSON
    """Every object inside a schema, itself included."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(part)
