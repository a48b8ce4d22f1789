"""An adapter file from anywhere -> our state, after a strict check of its content."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.files import printable
from trainer.core.tensors import first_non_finite, read_header, read_tensors
from trainer.weights.adapter_kinds import state_of
from trainer.weights.adapter_state import AdapterState
from trainer.weights.bundles import BUNDLED
from trainer.weights.forms import form_of
from trainer.weights.layouts import Layout
from trainer.weights.lora_state import LoraState
from trainer.weights.names import Naming
from trainer.weights.peft_configs import PEFT_CONFIG, PEFT_FILE, PEFT_PREFIX
from trainer.weights.roles import ALPHA, KRONECKER, split_key
from trainer.weights.said_alphas import Said, said_beside, said_in_header


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What an adapter file holds."""

    state: AdapterState  # in the file's number formats
    layout: Layout
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LoraFile:
    """What a LoRA file holds."""

    state: LoraState  # in the file's number formats
    layout: Layout
    metadata: Mapping[str, str]


def read_adapter(path: Path, naming: Naming) -> AdapterFile:
    """Read a LoRA, LoHa, LoKr or DoRA in kohya's, diffusers' or peft's layout; trust nothing in it.

    Args:
        path: a .safetensors file, or peft's folder: with adapter_model.safetensors and adapter_config.json in it, or
            with a folder of these for each network (unet, text_encoder, text_encoder_2).
        naming: of the family that the adapter is for.

    Raises:
        WeightsError: it is no whole safetensors file; a key is unknown to the family, a half is missing, shapes do
            not fit, numbers are no floats or not finite, a rank is greater than its layer, or two keys mean one layer.
            The message names the key.
    """
    pieces = pieces_of(path, list(naming.parts))
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    layouts: set[Layout] = set()
    metadata: dict[str, str] = {}
    for part, file in pieces.items():
        piece = _Piece(file, naming, part)
        piece.read()
        if piece.tensors.keys() & tensors.keys():
            raise WeightsError("Two keys of this adapter mean the same layer.", where=str(file))
        tensors |= piece.tensors
        alphas |= piece.alphas
        layouts |= piece.layouts
        metadata |= piece.metadata
    return AdapterFile(state_of(tensors, alphas), layouts.pop() if len(layouts) == 1 else "kohya", metadata)


def read_lora(path: Path, naming: Naming) -> LoraFile:
    """Read a LoRA, and refuse every other kind of adapter; otherwise as `read_adapter`.

    Raises:
        WeightsError: as there, or it is a LoHa, LoKr or DoRA.
    """
    file = read_adapter(path, naming)
    if not isinstance(file.state, LoraState):
        raise WeightsError(
            f"This is a {file.state.kind}, and a plain LoRA is needed here.",
            where=str(path),
            mend="Use an adapter of kind lora.",
        )
    return LoraFile(file.state, file.layout, file.metadata)


class _Piece:
    """One file, on the way to a state."""

    def __init__(self, path: Path, naming: Naming, part: str) -> None:
        self.path = path
        self.naming = naming
        self.part = part  # of the model, where the folder says it
        self.tensors: dict[str, Tensor] = {}
        self.alphas: dict[str, float] = {}
        self.layouts: set[Layout] = set()
        self.metadata: Mapping[str, str] = {}

    def read(self) -> None:
        """Take the file's content in, by our names."""
        file = read_tensors(self.path)
        self.metadata = read_header(self.path).metadata
        if not file:
            raise WeightsError("This file holds no tensors.", where=str(self.path))
        broken = first_non_finite(file)
        if broken is not None:
            name = printable(broken[:200])
            raise WeightsError("This file holds weights that are not finite.", where=f"{self.path}: {name}")
        for key, tensor in file.items():
            if not key.startswith(BUNDLED):  # words beside the layers; `bundles` reads them
                self._take(key, tensor)
        layout = next(iter(self.layouts)) if len(self.layouts) == 1 else "kohya"
        if layout == "diffusers":
            self._fill_alphas(said_in_header(self.path, self.metadata))
        elif layout == "peft":
            self._fill_alphas(said_beside(self.path.with_name(PEFT_CONFIG)))

    def _take(self, key: str, tensor: Tensor) -> None:
        split = split_key(key)
        if split is None:
            raise WeightsError("This key belongs to no LoRA, LoHa, LoKr or DoRA.", where=printable(key[:200]))
        name, role = split
        layer, layout = self._layer(name)
        self.layouts.add(layout)
        if f"{layer}.{role}" in self.tensors or (role == ALPHA and layer in self.alphas):
            raise WeightsError("Two keys of this file mean the same layer.", where=printable(key[:200]))
        if role == ALPHA:
            self.alphas[layer] = _alpha(key, tensor)
        else:
            self.tensors[f"{layer}.{role}"] = tensor

    def _layer(self, name: str) -> tuple[str, Layout]:
        """Our name of a module, and the layout that its name is written in."""
        if name.startswith(PEFT_PREFIX):
            return self._in_some_part(name.removeprefix(PEFT_PREFIX)), "peft"
        if name.split(".")[0] in self.naming.parts:
            return self.naming.canonical(
                re.sub(r"\.to_out$", ".to_out.0", name.replace(".processor.", "."))
            ), "diffusers"
        return self.naming.from_kohya(name), "kohya"

    def _in_some_part(self, path: str) -> str:
        """The layer of a path that does not say which network it is of, as in peft's own files.

        Raises:
            WeightsError: the family has no such layer, or has it in two networks.
        """
        parts = [self.part] if self.part else list(self.naming.parts)
        found = [
            part
            for part in parts
            if any(self.naming.parts[part].layers.fullmatch(name) for name in (path, f"text_model.{path}"))
        ]
        if len(found) > 1:
            raise WeightsError(
                f"This layer may be of {' or of '.join(found)}.",
                where=printable(path[:200]),
                mend="Put the two files of peft into a folder called text_encoder or text_encoder_2, beside or without "
                "the others, and name the folder around it.",
            )
        if not found:
            raise WeightsError("This family has no such layer.", where=printable(path[:200]))
        return self.naming.canonical(f"{found[0]}.{path}")

    def _fill_alphas(self, said: Said) -> None:
        """The alphas that a configuration gives, for layers that have none of their own."""
        layers: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            layer, role = split_key(name) or ("", "")
            if layer not in self.alphas and tensor.ndim:
                layers.setdefault(layer, {})[role] = tensor
        for layer, roles in layers.items():
            rank = _rank(roles)
            whole = rank is None and set(KRONECKER) & set(roles)
            divisor = said.rank(layer) if whole else rank
            alpha = None if divisor is None else said.alpha(layer, int(divisor))
            if alpha is None or divisor is None:
                continue
            if not whole:
                self.alphas[layer] = alpha
            elif KRONECKER[0] in roles and alpha != divisor:
                # peft scales a product of whole factors too, and in kohya's layout nothing does
                self.tensors[f"{layer}.{KRONECKER[0]}"] = roles[KRONECKER[0]].float() * (alpha / divisor)


def pieces_of(path: Path, parts: Sequence[str]) -> dict[str, Path]:
    """The files of an adapter, by the network that each is of where a folder's name says it; else by "".

    Args:
        path: a file, or peft's folder with its two files or with a folder of these for each network.
        parts: the networks that there may be.

    Raises:
        WeightsError: a folder holds no adapter of peft's.
    """
    if not path.is_dir():
        known = path.name == PEFT_FILE and path.resolve().parent.name in parts
        return {path.resolve().parent.name if known else "": path}
    if (path / PEFT_FILE).is_file():
        return pieces_of(path / PEFT_FILE, parts)
    found = {part: path / part / PEFT_FILE for part in parts if (path / part / PEFT_FILE).is_file()}
    if not found:
        raise WeightsError(
            f"There is no {PEFT_FILE} in this folder.",
            where=str(path),
            mend=f"Name a .safetensors file, or a folder with peft's files, or with {', '.join(parts)} in it.",
        )
    return found


def _rank(roles: Mapping[str, Tensor]) -> int | None:
    """The rank of a layer whose tensors are not yet checked; None where nothing tells it."""
    try:
        return form_of(roles).rank(roles)
    except (KeyError, IndexError):
        return None  # a half is missing or has no shape, which the check of the state will say


def _alpha(key: str, tensor: Tensor) -> float:
    """The number in an alpha tensor; some tools write an integer, which is as good."""
    value = float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else math.nan
    if not math.isfinite(value):
        raise WeightsError("An alpha must be one finite number.", where=printable(key[:200]))
    return value
