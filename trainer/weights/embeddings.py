"""Textual-inversion embeddings: the vectors of words that are added to a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from trainer.core.errors import NonFiniteError, WeightsError
from trainer.core.files import printable
from trainer.core.tensors import first_non_finite, read_header, read_tensors
from trainer.weights.export import ExportSettings, write_checked
from trainer.weights.metadata import hashes_of

EmbeddingLayout = Literal["plain", "diffusers", "a1111"]

_SINGLE = "emb_params"
PARTS_OF_KEYS: Mapping[str, str] = {_SINGLE: "text_encoder", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""The tensors of an embedding file, and the text encoder that each is for."""
_A1111 = ("string_to_param.*", "string_to_param", "*")
_MOST_VECTORS = 75  # a prompt has no room for more


@dataclass(frozen=True, slots=True)
class Embedding:
    """One new word: the same number of vectors for each text encoder of a model."""

    vectors: Mapping[str, Tensor]  # text_encoder, of SDXL also text_encoder_2 -> [n D]
    token: str | None = None  # the word, where the file says it

    def check(self) -> None:
        """Make sure that the vectors fit together and can be used.

        Raises:
            WeightsError: a text encoder is missing or unknown; a tensor is no matrix of floats; the counts differ, or
                are more than a prompt holds.
        """
        if set(self.vectors) not in ({"text_encoder"}, {"text_encoder", "text_encoder_2"}):
            raise WeightsError(
                "An embedding has vectors for the text encoder, or of SDXL for both, and this one has them for "
                f"{', '.join(sorted(self.vectors)) or 'none'}."
            )
        for part, tensor in self.vectors.items():
            if not tensor.is_floating_point() or tensor.ndim != 2 or not tensor.numel():
                raise WeightsError(f"These are no vectors of words: {list(tensor.shape)}, {tensor.dtype}.", where=part)
        counts = {tensor.shape[0] for tensor in self.vectors.values()}
        if len(counts) > 1:
            raise WeightsError("The two text encoders have different numbers of vectors.")
        if max(counts) > _MOST_VECTORS:
            raise WeightsError(f"An embedding of {max(counts)} vectors is longer than a prompt ({_MOST_VECTORS}).")


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """What an embedding file holds."""

    embedding: Embedding  # in the file's number formats
    layout: EmbeddingLayout
    metadata: Mapping[str, str]


def read_embedding(path: Path, widths: Mapping[str, int] | None = None) -> EmbeddingFile:
    """Read an embedding as sd-scripts, diffusers ({word: tensor}) or A1111 write it; trust nothing in it.

    Args:
        path: a .safetensors file.
        widths: D of each text encoder of the model that it is for; None: of any.

    Raises:
        WeightsError: it is no whole safetensors file, or no embedding, or one of another family; or it is not finite.
    """
    tensors = read_tensors(path)
    keys = list(tensors)
    token: str | None = None
    layout: EmbeddingLayout = "plain"
    if set(keys) == {"clip_l", "clip_g"} or keys == [_SINGLE]:
        vectors = {PARTS_OF_KEYS[key]: tensor for key, tensor in tensors.items()}
    elif len(keys) == 1 and not set(keys) & {"clip_l", "clip_g"}:
        layout = "a1111" if keys[0] in _A1111 else "diffusers"
        token = token_of(keys)
        vectors = {"text_encoder": tensors[keys[0]]}
    else:
        names = ", ".join(printable(key[:40]) for key in sorted(keys)[:4]) or "none"
        raise WeightsError(
            f"This is no textual-inversion embedding: its tensors are {names}.",
            where=str(path),
            mend="An embedding has one tensor, or for SDXL clip_l and clip_g.",
        )
    broken = first_non_finite(tensors)
    if broken is not None:
        raise WeightsError("This embedding is not finite.", where=f"{path}: {printable(broken[:200])}")
    # diffusers writes a single vector without the first axis
    embedding = Embedding({k: v.unsqueeze(0) if v.ndim == 1 else v for k, v in vectors.items()}, token)
    embedding.check()
    if widths is not None:
        _check_widths(path, embedding, widths)
    return EmbeddingFile(embedding, layout, read_header(path).metadata)


def export_embedding(path: Path, embedding: Embedding, metadata: Mapping[str, str], settings: ExportSettings) -> Path:
    """Write an embedding in the one form that all programs read; it is read back before it takes its name.

    Args:
        path: ends in .safetensors; programs call the word by the file's name.
        embedding: for one text encoder (SD1, SD2) or both (SDXL).
        metadata: such as `as_metadata` makes of facts of kind embedding.
        settings: the number format. The layout has no meaning here: diffusers reads this form too.

    Raises:
        NonFiniteError: a number is NaN or infinite, or overflows in the number format asked for.
        WeightsError: the embedding is not whole, or the disk gave back something else.
    """
    embedding.check()
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"} if len(embedding.vectors) > 1 else {}
    tensors = {
        names.get(part, _SINGLE): tensor.detach().to("cpu", settings.precision.dtype).contiguous().clone()
        for part, tensor in sorted(embedding.vectors.items())
    }
    broken = first_non_finite(tensors)
    if broken is not None:
        raise NonFiniteError(
            f"This embedding is not finite in {settings.precision.value}; nothing was written.", where=broken
        )
    kept = {key: text for key, text in metadata.items() if not key.startswith("sshs_")}
    write_checked(path, tensors, {**kept, **hashes_of(tensors, kept)})
    return path


def file_of_word(path: Path, word: str, place: int) -> Path:
    """Where a run's word lies: the first one in the result itself, each further one beside it, with its name."""
    name = plain_word(word) or f"word{place + 1}"
    return path if place == 0 else path.with_name(f"{path.stem}-{name}{path.suffix}")


def plain_word(word: str) -> str:
    """A word without the signs that a file's name had better not have: `blob` for `<blob>`."""
    return re.sub(r"[^\w-]+", "", word)


def token_of(keys: Sequence[str]) -> str | None:
    """The word that diffusers' files have as the name of their tensor."""
    return keys[0] if len(keys) == 1 and keys[0] not in (_SINGLE, *_A1111) else None


def _check_widths(path: Path, embedding: Embedding, widths: Mapping[str, int]) -> None:
    found = {part: tensor.shape[1] for part, tensor in embedding.vectors.items()}
    if found != dict(widths):
        raise WeightsError(
            f"This embedding is for text encoders of {_said(found)}, and the model's are of {_said(widths)}.",
            where=str(path),
            mend="Use an embedding of the model's family.",
        )


def _said(widths: Mapping[str, int]) -> str:
    return " and ".join(str(width) for _, width in sorted(widths.items()))
