"""The frozen base of all recipe parts."""

from pydantic import BaseModel, ConfigDict


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
