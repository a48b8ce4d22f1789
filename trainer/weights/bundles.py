"""New words inside a LoRA file, as A1111 reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from trainer.core.errors import NonFiniteError
from trainer.core.tensors import first_non_finite, read_header, read_tensors
from trainer.weights.embeddings import PARTS_OF_KEYS, Embedding
from trainer.weights.export import ExportSettings, write_checked
from trainer.weights.metadata import hashes_of

BUNDLED: Final = "bundle_emb."
"""What the keys of words in a LoRA file begin with; the word follows, and then a key as in an embedding file."""

_SINGLE: Final = "string_to_param.*"  # of a word for one text encoder, as in A1111's own embedding files
_OF_TWO: Final = ("clip_l", "clip_g")


def bundle(path: Path, words: Mapping[str, Embedding], settings: ExportSettings) -> None:
    """Write a LoRA file once more with words in it; it is read back before it takes its name.

    Args:
        path: in kohya's layout.
        words: by their names, in which there are no dots.
        settings: the number format.

    Raises:
        NonFiniteError: a number overflows in the number format asked for.
        WeightsError: the file is broken, or the disk gave back something else.
    """
    tensors, metadata = read_tensors(path), dict(read_header(path).metadata)
    names = {part: key for key, part in PARTS_OF_KEYS.items() if key in _OF_TWO}
    for word, embedding in words.items():
        embedding.check()
        for part, vectors in embedding.vectors.items():
            key = names[part] if len(embedding.vectors) > 1 else _SINGLE
            tensors[f"{BUNDLED}{word}.{key}"] = (
                vectors.detach().to("cpu", settings.precision.dtype).contiguous().clone()
            )
    broken = first_non_finite(tensors)
    if broken is not None:
        raise NonFiniteError(f"This word is not finite in {settings.precision.value}.", where=broken)
    write_checked(path, tensors, metadata | hashes_of(tensors, metadata))


def bundled_words(tensors: Mapping[str, Tensor]) -> dict[str, Embedding]:
    """The words in the tensors of a LoRA file, checked.

    Raises:
        WeightsError: the vectors of one cannot be used.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(BUNDLED):
            word, _, key = name.removeprefix(BUNDLED).partition(".")
            part = PARTS_OF_KEYS.get(key, "text_encoder")
            found.setdefault(word, {})[part] = tensor.unsqueeze(0) if tensor.ndim == 1 else tensor
    words = {word: Embedding(vectors, word) for word, vectors in found.items()}
    for embedding in words.values():
        embedding.check()
    return words
