"""A state -> tensors under the names that other programs read, in each of the layouts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.weights.adapter_kinds import as_peft_vector
from trainer.weights.adapter_state import AdapterState
from trainer.weights.even_alphas import even_alphas
from trainer.weights.forms import form_of
from trainer.weights.names import Naming
from trainer.weights.peft_configs import PEFT_PREFIX, alpha_of, lora_config, peft_config
from trainer.weights.roles import ALPHA, DOWN, SCALE, UP, VECTOR
from trainer.weights.said_alphas import ADAPTER_METADATA

Layout = Literal["kohya", "diffusers", "peft"]

_KOHYA = {DOWN: "lora_down.weight", UP: "lora_up.weight"}


@dataclass(frozen=True, slots=True)
class PeftPiece:
    """What peft keeps of one network."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]  # of adapter_config.json


def to_kohya(state: AdapterState, naming: Naming, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state's tensors under kohya's names, contiguous on the CPU.

    Where programs disagree on alphas (`even_alphas`), they are written so that all agree, and the difference is
    multiplied into a tensor. The magnitudes of a DoRA keep their axis.

    Raises:
        WeightsError: the state is no whole adapter of this family.
    """
    written = _as_written(state)
    tensors: dict[str, Tensor] = {}
    for layer in written.layers():
        name = naming.to_kohya(layer)
        for role, tensor in written.roles(layer).items():
            tensors[f"{name}.{_KOHYA.get(role, role)}"] = _plain(tensor, dtype)
        # always float32: an alpha that 16 bits cannot hold would scale the whole layer wrongly
        tensors[f"{name}.{ALPHA}"] = torch.tensor(written.alphas[layer], dtype=torch.float32)
    return tensors


def to_diffusers(state: AdapterState, naming: Naming, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state's tensors and metadata as diffusers' save_lora_weights writes them.

    Raises:
        WeightsError: the state is no whole adapter of this family, or of a kind that diffusers cannot load.
    """
    if state.kind in {"loha", "lokr"}:
        raise WeightsError(
            f"diffusers cannot load a {state.kind}, so there is no such file in its layout.",
            where="layout: diffusers",
            mend="Export in the kohya layout, which ComfyUI, Forge and A1111 load, or in peft's.",
        )
    written = _as_written(state)
    said: dict[str, Any] = {}
    for part in _parts(written):
        said |= {f"{part}.{word}": value for word, value in lora_config(written, part).items()}
    tensors: dict[str, Tensor] = {}
    for layer in written.layers():
        name = naming.canonical(layer)
        pefts = _pefts(written.roles(layer))
        if VECTOR in pefts and not name.startswith("unet."):
            pefts[f"{VECTOR}.weight"] = pefts.pop(
                VECTOR
            )  # transformers, which loads these, knows it by this name alone
        tensors |= {f"{name}.{role}": _plain(tensor, dtype) for role, tensor in pefts.items()}
    metadata = {"format": "pt", ADAPTER_METADATA: json.dumps(said, indent=2, sort_keys=True)}
    return tensors, metadata


def to_peft(state: AdapterState, naming: Naming, dtype: torch.dtype) -> dict[str, PeftPiece]:
    """For each network the tensors and the configuration that PeftModel.from_pretrained reads.

    Raises:
        WeightsError: the state is no whole adapter of this family, or of a form that peft does not build.
    """
    written = _as_written(state)
    pieces: dict[str, PeftPiece] = {}
    for part in _parts(written):
        tensors: dict[str, Tensor] = {}
        for layer in written.layers():
            if layer.startswith(f"{part}."):
                name = PEFT_PREFIX + _peft_path(naming.canonical(layer))
                pefts = _pefts(written.roles(layer))
                tensors |= {f"{name}.{role}": _plain(tensor, dtype) for role, tensor in pefts.items()}
        pieces[part] = PeftPiece(tensors, peft_config(written, part))
    return pieces


def _as_written(state: AdapterState) -> AdapterState:
    """The same adapter with the alphas that files have; what these differ is multiplied into a tensor.

    Raises:
        WeightsError: the state is empty or not whole.
    """
    state.check()
    if not state.tensors:
        raise WeightsError("There is nothing to export: no layer was trained.")
    alphas = even_alphas(state)
    tensors: dict[str, Tensor] = {}
    for layer, alpha in alphas.items():
        roles = {role: tensor.detach() for role, tensor in state.roles(layer).items()}
        form, own = form_of(roles), alpha_of(state.alphas[layer])
        if form.rank(roles) is not None and own != alpha:
            roles = form.times(roles, own / alpha)
        tensors |= {f"{layer}.{role}": tensor for role, tensor in roles.items()}
    return type(state)(tensors=tensors, alphas=alphas)


def _parts(state: AdapterState) -> list[str]:
    return sorted({layer.partition(".")[0] for layer in state.layers()})


def _pefts(roles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Roles in the words of peft, which calls a DoRA's lengths a vector."""
    return {
        VECTOR if role == SCALE else role: as_peft_vector(tensor) if role == SCALE else tensor
        for role, tensor in roles.items()
    }


def _peft_path(layer: str) -> str:
    """A layer's path inside its network, as transformers 5 names it."""
    part, _, path = layer.partition(".")
    # CLIPTextModel has lost this word there, CLIPTextModelWithProjection (the second encoder) has not
    return path.removeprefix("text_model.") if part == "text_encoder" else path


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """On the CPU, row by row, and sharing memory with no other tensor, as safetensors asks."""
    return tensor.detach().to(device="cpu", dtype=dtype).clone(memory_format=torch.contiguous_format)
