"""HTML pages that open from a disk, ask for nothing from the network, and let no text in them become anything else."""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.core.files import printable, replacing


def write_page(path: Path, template: Path, values: Mapping[str, Any]) -> None:
    """Write a page whole or not at all, piece by piece: of what a loop of the template goes through, one piece is kept.

    Args:
        path: the page.
        template: in jinja's language; every text is escaped, for HTML and for signs that turn the writing around.
        values: what the template speaks of.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for piece in _rendered(template, values):
            file.write(piece)


def script_source(script: str) -> str:
    """The word of a content security policy that allows this one inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}"


def _rendered(template: Path, values: Mapping[str, Any]) -> Iterator[str]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).generate(**values)
