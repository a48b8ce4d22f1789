"""Whole fine-tuning: the networks' own weights are trained, and the result is a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from typing_extensions import Self, override

from trainer.adapters.parts import TEXT_WORDS, UNET, Rates, check_words, part_word
from trainer.adapters.trainable import Adapter, Surroundings, Trainable
from trainer.core.device import Precision
from trainer.core.errors import CheckpointError, RecipeError
from trainer.core.seeds import Seeds
from trainer.core.shards import shared_like
from trainer.families.model import DiffusionModel
from trainer.families.published import TOKENS
from trainer.families.saving import save_whole
from trainer.families.source import Part
from trainer.optim.fused_backward import OneByOne
from trainer.optim.groups import ParameterGroup
from trainer.weights.export import ExportSettings
from trainer.weights.metadata import TrainingFacts, as_metadata

_TABLES: Final = re.compile(r"(?:text_model\.)?embeddings\..*")  # of words and places, which few captions move


class FullFinetune(Adapter):
    """All weights of the U-Net, or those of some of its layers, and on demand of the text encoders.

    The result is a whole model. Pictures are drawn without what was learned only before the first step for free; later
    the base comes from the disk again.
    """

    kind: Literal["full"] = "full"
    layers: tuple[str, ...] = Field(default=("unet",), min_length=1)
    """What is trained: unet, all of it; or of it attention, feed_forward, transformer, convolution; and te1, te2, the
    layers of the text encoders, whose tables of words stay as they are."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """The number format in which trained networks are kept and moved. float32 takes twice the memory, and with
    precision: bfloat16 they compute in bfloat16 all the same. bfloat16 is rounded by chance in every step, so that
    small steps are not lost."""
    fused: bool = True
    """Whether each tensor is moved in the backward pass as soon as its gradient is there, which is then freed: the
    gradients of a whole model take no memory. It needs accumulate: 1 and one process, and clip_norm then holds for the
    gradient of each tensor by itself, not for all together."""
    rates: Rates = Rates()
    """Learning rates of the parts, where they are not optimizer.rate, for which 1.0e-5 is a good beginning."""

    @model_validator(mode="after")
    def _rates_are_of_trained_parts(self) -> Self:
        strangers = [word for word in self.rates.given if word not in {part_word(word) for word in self.layers}]
        if strangers:
            raise ValueError(f"rates.{strangers[0]} is given, and nothing of that part is trained.")
        return self

    @property
    @override
    def trains_words(self) -> bool:
        return any(word in TEXT_WORDS for word in self.layers)

    @property
    @override
    def makes_model(self) -> bool:
        return True

    @property
    @override
    def moves_alone(self) -> bool:
        return self.fused or self.weights != "float32"

    @property
    @override
    def files(self) -> Mapping[str, Path]:
        return {}

    @override
    def check(self, model: DiffusionModel) -> None:
        check_words(model, self.layers, also=(UNET,))

    @override
    def check_export(self, model: DiffusionModel, settings: ExportSettings) -> None:
        if settings.layout not in ("kohya", "folder"):
            raise RecipeError(
                f"A whole model cannot be written in the layout {settings.layout}.",
                where="export.layout",
                mend="Leave it out for a single file, or say folder for diffusers' layout.",
            )
        words = min(int(model.source.config(cast("Part", part))["vocab_size"]) for part in model.text_parts.values())
        if settings.layout == "kohya" and words < TOKENS:
            raise RecipeError(
                f"A single file carries no tokenizer, and that of this model is not CLIP's: it knows {words} tokens.",
                where="export.layout",
                mend="Set export.layout: folder.",
            )

    @override
    def check_surroundings(self, surroundings: Surroundings) -> None:
        for key, (there, what, mend) in self._conflicts(surroundings).items():
            if there:
                raise RecipeError(what, where=key, mend=mend)

    def _conflicts(self, beside: Surroundings) -> Mapping[str, tuple[bool, str, str]]:
        """By the key where it stands: whether it is so, what is wrong, and how to mend it."""
        apart, half = "Set adapter.fused: false", beside.precision == Precision.float16
        fused = "With adapter.fused each tensor is moved in the backward pass: "
        return {
            "model": (
                beside.frozen_base,
                "A model that is quantised, or part of which stays in the computer's memory, cannot be trained itself.",
                "Leave model.quantize and model.resident out; or train a LoRA.",
            ),
            "data.sources.target": (
                beside.asks_base,
                "The base model's own answer cannot be asked for in each step while the base itself is trained.",
                "Leave target: base out, and use pictures of the class with regularisation: true.",
            ),
            "optimizer.kind": (
                self.moves_alone and not beside.optimizer.apart,
                "This optimizer moves all tensors together, and here they are moved one by one.",
                "Use adamw_8bit or adafactor; or adapter.fused: false with adapter.weights: float32.",
            ),
            "accumulate": (
                self.fused and beside.accumulate > 1,
                f"{fused}gradients cannot be summed over {beside.accumulate} batches.",
                f"{apart}, or accumulate: 1 and a greater batch.",
            ),
            "adapter.fused": (
                self.fused and beside.processes > 1,
                f"{fused}gradients cannot be averaged over {beside.processes} processes.",
                f"{apart}.",
            ),
            "precision": (
                half and self.moves_alone,
                f"{fused}gradients cannot be scaled, as float16 needs it; and bfloat16 weights do not compute in it.",
                "Use precision: bfloat16; or adapter.fused: false with adapter.weights: float32.",
            ),
        }

    @override
    def attach(self, model: DiffusionModel, seeds: Seeds) -> "WholeModel":
        """The chosen weights can be trained, and lie in memory in the number format asked for.

        Raises:
            RecipeError: the family has no layers of the names asked for.
        """
        self.check(model)
        groups: list[ParameterGroup] = []
        networks: dict[str, nn.Module] = {}
        named: dict[str, Parameter] = {}
        for word, part in {UNET: UNET, **model.text_parts}.items():
            wanted = [layer for layer in self.layers if part_word(layer) == word]
            if not wanted:
                continue
            if word != UNET:
                model.keep_text_encoders()
            networks[part] = model.hold_in(part, Precision(self.weights).dtype)
            chosen = _chosen(networks[part], wanted, model.adaptable)
            for parameter in chosen.values():
                parameter.requires_grad = True
            named |= {f"{part}.{_canonical(name, part)}": parameter for name, parameter in chosen.items()}
            groups.append(ParameterGroup(name=word, parameters=list(chosen.values()), rate=self.rates.of(word)))
        return WholeModel(model, networks, named, groups, self, seeds)

    @override
    def begin(self, trainable: Trainable, model: DiffusionModel) -> None:
        """It begins with the base."""


class WholeModel(Trainable):
    """Networks whose own weights are trained."""

    def __init__(
        self,
        model: DiffusionModel,
        networks: Mapping[str, nn.Module],
        named: Mapping[str, Parameter],
        groups: Sequence[ParameterGroup],
        settings: FullFinetune,
        seeds: Seeds,
    ) -> None:
        self._model = model
        self._networks = networks  # as they are without what training on several devices puts around them
        self._named = dict(named)
        self._groups = list(groups)
        self._settings = settings
        self._seeds = seeds
        self._untouched = True  # the weights are still those of the base
        self._set_aside: dict[str, Tensor] = {}  # the trained values, where others stand in the model

    @property
    @override
    def parts(self) -> tuple[str, ...]:
        return tuple(self._networks)

    @override
    def groups(self) -> list[ParameterGroup]:
        return list(self._groups)

    @override
    def follow(self) -> None:
        for part, network in self._networks.items():
            now = {f"{part}.{_canonical(name, part)}": own for name, own in network.named_parameters()}
            self._named |= {name: now[name] for name in self._named if name in now}
        left = iter(self._named.values())  # in the order of the groups
        self._groups = [replace(group, parameters=list(islice(left, len(group.parameters)))) for group in self._groups]

    @override
    def driven(self, optimizer: Optimizer, clip_norm: float) -> Optimizer:
        if not self._settings.moves_alone:
            return optimizer
        alone = OneByOne(optimizer, self._seeds, clip_norm if self._settings.fused else None)
        if self._settings.fused:
            alone.fuse()
        return alone

    @override
    def after_step(self) -> None:
        self._untouched = False

    @override
    def state(self) -> dict[str, Tensor]:
        """See `Trainable.state`; the tensors are in the number format in which they are trained."""
        return {name: self._set_aside.get(name, parameter.detach()) for name, parameter in self._named.items()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        own = {(name, tuple(parameter.shape), parameter.dtype) for name, parameter in self._named.items()}
        wrong = sorted(own ^ {(name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}, key=str)
        if wrong:
            raise CheckpointError(
                f"These trained tensors do not fit the model: {len(wrong)} differences, {wrong[0][0]} first.",
                mend="Use the recipe that they were trained with.",
            )
        self._untouched = False
        self._set_aside = {}
        for name, parameter in self._named.items():
            parameter.detach().copy_(shared_like(state[name], parameter))

    @override
    def set_strength(self, strength: float) -> None:
        """See `Trainable.set_strength`: the weights are so much of the way from the base's to the trained ones.

        For any other strength than 1 the base is read from the disk, unless nothing was trained yet, and the trained
        weights wait in the computer's memory.
        """
        for name, tensor in self._set_aside.items():
            self._named[name].detach().copy_(tensor)
        self._set_aside = {}
        if strength == 1.0 or self._untouched:
            return
        for part, network in self._networks.items():
            weights = next(network.parameters()).dtype
            base = dict(self._model.source.load(cast("Part", part), weights).named_parameters())
            prefix = f"{part}."
            for name, parameter in self._named.items():
                if not name.startswith(prefix):
                    continue
                own = name.removeprefix(prefix)
                before = base[own if own in base else own.removeprefix("text_model.")].detach().float()
                self._set_aside[name] = parameter.detach().to("cpu", copy=True)
                mixed = torch.lerp(before, self._set_aside[name].float(), strength) if strength else before
                parameter.detach().copy_(mixed)

    @override
    def write(self, path: Path, facts: TrainingFacts, settings: ExportSettings) -> Path:
        """See `Trainable.write`; tensor by tensor, so that the model is not in memory twice."""
        said = replace(facts, kind="checkpoint", parts=self.parts)
        metadata = as_metadata(said)
        return save_whole(settings.result(path), self._model, self._networks, metadata, settings.precision.dtype)


def _chosen(network: nn.Module, words: Sequence[str], adaptable: Mapping[str, str]) -> dict[str, Parameter]:
    """The parameters that the words mean, by their names in the network, in its order."""
    patterns = [adaptable[word] for word in words if word in adaptable]
    if len(patterns) < len(words):  # a word for the whole network
        return {name: own for name, own in network.named_parameters() if not _TABLES.fullmatch(name)}
    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return {name: own for name, own in network.named_parameters() if wanted.fullmatch(name.rpartition(".")[0])}


def _canonical(name: str, part: str) -> str:
    """A parameter's one name: transformers before version 5 put `text_model.` before those inside CLIPTextModel."""
    inner = part != UNET and not name.startswith(("text_model.", "text_projection."))
    return f"text_model.{name}" if inner else name
