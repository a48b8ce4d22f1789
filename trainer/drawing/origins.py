"""What a picture says of the weights that drew it."""

import hashlib
from pathlib import Path
from typing import Final

from trainer.core.tensors import read_header
from trainer.drawing.opening import Drawable
from trainer.sampling.parameters import Origin
from trainer.weights.recognising import kind_of

_PIECE: Final = 1 << 20  # bytes


def origin_of(drawable: Drawable, strength: float) -> Origin:
    """What is said of a model that draws with its adapter at `strength`."""
    file = drawable.file
    return Origin(
        model=drawable.base_name,
        adapter=drawable.name,
        strength=strength,
        adapter_hash="" if file is None else _hash_of(file),
        clip_skip=drawable.model.clip_skip or 1,
    )


def _hash_of(file: Path) -> str:
    """The hash by which web UIs and model sites know an adapter file; "" of what they do not load as one.

    It is the `sshs_model_hash` that the file says of itself, or else SHA-256 of all that follows the header.
    """
    header = read_header(file)
    if kind_of(list(header.tensors)) == "textual inversion":
        return ""
    said = header.metadata.get("sshs_model_hash", "")
    if len(said) == 64 and set(said) <= set("0123456789abcdef"):
        return said
    digest = hashlib.sha256()
    with file.open("rb") as content:
        content.seek(8 + int.from_bytes(content.read(8), "little"))
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
