"""Networks on disk: checked by their headers, and read tensor by tensor into memory."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import torch
from blake3 import blake3
from torch import Tensor, nn
from typing_extensions import override

from trainer.core.errors import WeightsError
from trainer.core.files import printable
from trainer.core.tensor_files import TensorFile, bytes_of
from trainer.core.tensors import DTYPES, TensorFacts, is_finite
from trainer.families.networks import empty_network, live_name
from trainer.families.quantising import Quantiser
from trainer.families.source import Part, WeightsSource
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import PARTS, places_of
from trainer.weights.places import STACKED, Form, Place

NAMES: Final[Mapping[Part, str]] = {
    "unet": "U-Net",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
"""The networks, as messages call them."""

# of a configuration, what tells of its past and changes nothing
_HISTORY = frozenset({"transformers_version", "torch_dtype", "dtype", "architectures"})


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor of a network lies."""

    file: Path
    key: str
    facts: TensorFacts
    form: Form = "same"

    def rows(self, place: Place) -> slice | None:
        """Which rows of what lies there belong to `place`, where it is three of ours; None: all."""
        if self.form not in STACKED:
            return None
        first = STACKED.index(self.form) * place.shape[0]
        return slice(first, first + place.shape[0])

    def as_ours(self, tensor: Tensor, place: Place) -> Tensor:
        """What was read of it, in the shape that diffusers has."""
        return tensor.t().contiguous() if self.form == "transposed" else tensor.reshape(place.shape)

    def as_stored(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `as_ours`, in the `shape` of what was read."""
        return tensor.t().contiguous() if self.form == "transposed" else tensor.reshape(shape)


class StoredPart:
    """One network on disk."""

    def __init__(
        self, part: Part, family: KnownFamily, config: Mapping[str, Any], tensors: Mapping[str, Stored]
    ) -> None:
        """Nothing is read yet.

        Args:
            part: which network it is.
            family: of the model.
            config: in the words of diffusers or transformers.
            tensors: of each tensor, by its canonical name; there may be more of them than the network has.
        """
        self.part: Part = part
        self.config = dict(config)
        self.tensors = tensors
        self._family: KnownFamily = family

    @property
    def where(self) -> str:
        """The file, or the folder of the files, that holds it."""
        files = sorted({stored.file for stored in self.tensors.values()})
        return str(files[0] if len(files) == 1 else files[0].parent) if files else "model.weights"

    def check(self) -> None:
        """Make sure, from the headers, that every tensor is there, of the shape that the configuration says.

        Raises:
            WeightsError: one is missing, or of another shape, or in a format of numbers that is not known.
        """
        missing = [place.name for place in self._places if place.name not in self.tensors]
        if missing:
            raise WeightsError(
                f"The {NAMES[self.part]} of this model lacks {len(missing)} weights, {missing[0]} among them.",
                where=self.where,
                mend="Copy or download the model again, whole.",
            )
        for place in self._places:
            self._check_tensor(place, self.tensors[place.name])

    def load(self, dtype: torch.dtype, quantiser: Quantiser | None = None) -> nn.Module:
        """See `WeightsSource.load`. At its peak it needs the network as it is kept and one tensor more.

        Raises:
            WeightsError: it is missing, broken, does not fit its configuration, or is not finite.
        """
        self.check()
        network = empty_network(self.part, self.config, self.where)
        known = set(network.state_dict())
        quantised = {} if quantiser is None else quantiser.begin(network)
        state: dict[str, Tensor] = {}
        for name, tensor in self._read(dtype):
            if name in quantised:
                quantised[name].take(tensor)
            else:
                state[live_name(name, known)] = tensor
        network.load_state_dict(state, strict=True, assign=True)
        return network.eval().requires_grad_(requires_grad=False)

    @cached_property
    def digest(self) -> str:
        """BLAKE3 over configuration and tensors; one model has the same as a folder and as a single file."""
        config = {key: value for key, value in self.config.items() if key[0] != "_" and key not in _HISTORY}
        digest = blake3(json.dumps(config, sort_keys=True).encode(), max_threads=blake3.AUTO)
        with ExitStack() as stack:
            self.check()
            files = self._open(stack)
            for place in sorted(self._places, key=lambda place: place.name):
                stored = self.tensors[place.name]
                digest.update(f"{place.name}:{stored.facts.dtype}:{place.shape}\n".encode())
                if stored.form == "transposed":
                    digest.update(bytes_of(files[stored.file].read(stored.key).t().contiguous()))
                else:
                    for piece in files[stored.file].pieces(stored.key, stored.rows(place)):
                        digest.update(piece)
        return digest.hexdigest()

    @cached_property
    def _places(self) -> tuple[Place, ...]:
        return places_of(self._family, self.part, self.config)

    def _check_tensor(self, place: Place, stored: Stored) -> None:
        where = f"{stored.file}, {printable(stored.key[:200])}"
        expected = Place(place.name, place.shape, place.key, stored.form).original_shape
        if _without_ones(stored.facts.shape) != _without_ones(expected):
            raise WeightsError(
                f"A weight of the {NAMES[self.part]} has the shape {list(stored.facts.shape)}, "
                f"and by the model's configuration it should be {list(expected)}.",
                where=where,
                mend="Take weights and configuration of the same model.",
            )
        if stored.facts.dtype not in DTYPES or not DTYPES[stored.facts.dtype].is_floating_point:
            raise WeightsError(
                f"A weight of the {NAMES[self.part]} is in the format {printable(stored.facts.dtype[:20])}, "
                "which cannot be trained on.",
                where=where,
                mend="Get the version of this model in float32, float16 or bfloat16.",
            )

    def _read(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """The tensors in `dtype`, in the order in which they lie on the disk."""
        order = sorted(self._places, key=lambda place: self._place_on_disk(place.name))
        with ExitStack() as stack:
            files = self._open(stack)
            for place in order:
                stored = self.tensors[place.name]
                tensor = stored.as_ours(files[stored.file].read(stored.key, dtype, stored.rows(place)), place)
                if not is_finite(tensor):
                    raise _not_finite(stored, dtype)
                yield place.name, tensor

    def _place_on_disk(self, name: str) -> tuple[Path, int]:
        stored = self.tensors[name]
        return stored.file, stored.facts.begin

    def _open(self, stack: ExitStack) -> Mapping[Path, TensorFile]:
        """The files, which are the same as when they were found."""
        used = [self.tensors[place.name] for place in self._places]
        files = {path: stack.enter_context(TensorFile(path)) for path in {stored.file for stored in used}}
        for stored in used:
            if files[stored.file].header.tensors.get(stored.key) != stored.facts:
                raise WeightsError(
                    "This file has changed since it was opened.", where=str(stored.file), mend="Start again."
                )
        return files


class StoredWeights(WeightsSource):
    """A base model whose networks are found; what remains to be said is where its small files lie."""

    parts: dict[Part, StoredPart]

    @override
    def check(self) -> None:
        for part in PARTS[self.facts.family]:
            self.part(part).check()

    @override
    def config(self, part: Part | Literal["scheduler"]) -> dict[str, Any]:
        return self.scheduler() if part == "scheduler" else dict(self.part(part).config)

    @override
    def load(self, part: Part, dtype: torch.dtype, quantiser: Quantiser | None = None) -> nn.Module:
        return self.part(part).load(dtype, quantiser)

    @override
    def digest(self, part: Part | Literal["tokenizer", "tokenizer_2"]) -> str:
        if part == "tokenizer" or part == "tokenizer_2":
            return digest_of_folder(self.tokenizer(part))
        return self.part(part).digest

    @abstractmethod
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's settings, in diffusers' words."""

    def part(self, part: Part) -> StoredPart:
        """One network, as it lies on the disk.

        Raises:
            WeightsError: this model has no such network.
        """
        if part not in self.parts:
            whole = "Get the whole model; this file or folder is a part of one."
            raise WeightsError(
                f"This model has no {NAMES[part]}.",
                where=self.where,
                mend="Name one in model.vae." if part == "vae" else whole,
            )
        return self.parts[part]


def digest_of_folder(folder: Path) -> str:
    """BLAKE3 over the names and contents of the files that a tokenizer is read from."""
    digest = blake3()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".json", ".txt"}:
            digest.update(f"{file.name}:{file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution and a linear layer hold the same numbers; programs write the one for the other."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _not_finite(stored: Stored, dtype: torch.dtype) -> WeightsError:
    with TensorFile(stored.file) as file:
        overflows = is_finite(file.read(stored.key))
    name = str(dtype).removeprefix("torch.")
    return WeightsError(
        f"A weight is too large for {name}." if overflows else "A weight of this model is NaN or infinite.",
        where=f"{stored.file}, {printable(stored.key[:200])}",
        mend="Choose bfloat16 or float32 in precision." if overflows else "Copy or download the model again.",
    )
