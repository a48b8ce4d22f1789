"""The frozen base of all recipe parts."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self, override


class Settings(BaseModel):
    """What a recipe may say about one thing; frozen, complete by defaults, and without unknown keys.

    Raises:
        pydantic.ValidationError: a key is unknown, or a value has the wrong type or range.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # Any: as pydantic
        """A copy with other values; what was derived from the old ones and kept is derived anew."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            vars(copied).pop(name)
        return copied
