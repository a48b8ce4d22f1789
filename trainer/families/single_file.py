"""A base model in one .safetensors file of the original layout; nothing else is needed, and no network."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from typing_extensions import override

from trainer.core.errors import WeightsError
from trainer.core.tensor_files import TensorFile
from trainer.core.tensors import Header, TensorFacts, is_pickle, read_header, refused_pickle
from trainer.families.deriving import derived, with_pooled
from trainer.families.model_facts import SPREAD_KEY, facts_of
from trainer.families.published import TOKENS, clip_tokenizer, published_configs, published_scheduler
from trainer.families.source import Part
from trainer.families.stored_parts import NAMES, Stored, StoredPart, StoredWeights
from trainer.weights.checkpoint_metadata import configs_in
from trainer.weights.metadata import KnownFamily
from trainer.weights.original_names import PARTS, places_of, prefix_of

# generative-models puts the one text encoder of SD1 and SD2 where SDXL has its first
_SGM_TEXT: Final = {"sd1": "conditioner.embedders.0.transformer.", "sd2": "conditioner.embedders.0.model."}
# some early checkpoints were written by a transformers that knew no `text_model.`
_EARLY_TEXT: Final = re.compile(r"(?:embeddings|encoder|final_layer_norm)\.")


class SingleFile(StoredWeights):
    """A checkpoint as model sites offer it."""

    def __init__(self, path: Path) -> None:
        """The header is read; of the weights, at most one small one that tells what an SD2 predicts.

        Raises:
            WeightsError: there is no such file; or it is a pickle, broken, or something else than a checkpoint of
                Stable Diffusion 1.x, 2.x or XL.
        """
        self.where = str(path)
        if is_pickle(path):
            raise refused_pickle(path)
        header = read_header(path)
        self.facts = facts_of(header, self.where)
        if self.facts.family == "sd2" and self.facts.prediction_guessed:
            self.facts = facts_of(header, self.where, _spread(path, header))
        self._configs = configs_in(header.metadata)
        self.parts = {}
        for part in PARTS[self.facts.family]:
            if found := _tensors(header, self.facts.family, part):
                self.parts[part] = self._stored(path, part, found)
        self._fit_together(header)

    @override
    def check(self) -> None:
        super().check()
        for part in ("text_encoder", "text_encoder_2"):
            known = self.parts[part].config["vocab_size"] if part in self.parts else TOKENS
            if known < TOKENS:
                raise WeightsError(
                    f"The {NAMES[part]} of this checkpoint knows {known} tokens, and CLIP's tokenizer has {TOKENS}.",
                    where=self.where,
                    mend="Use this model as a folder in the diffusers layout, which holds its own tokenizer.",
                )

    @override
    def scheduler(self) -> dict[str, Any]:
        return dict(self._configs["scheduler"]) if "scheduler" in self._configs else published_scheduler(self.facts)

    @override
    def tokenizer(self, part: Literal["tokenizer", "tokenizer_2"] = "tokenizer") -> Path:
        """See `WeightsSource.tokenizer`; the folder lives as long as this process.

        Raises:
            WeightsError: there is no room for a temporary file.
        """
        end_mark = part == "tokenizer" and self.facts.family != "sd2"
        return clip_tokenizer("<|endoftext|>" if end_mark else "!")

    def _stored(self, path: Path, part: Part, found: Mapping[str, "tuple[str, TensorFacts]"]) -> StoredPart:
        family = self.facts.family
        if part in self._configs:
            config = self._configs[part]
        else:
            shapes = {key: facts.shape for key, (_, facts) in found.items()}
            published = published_configs(family, self.facts.prediction)[part]
            config = derived(part, family, shapes, published, self.where)
        tensors = {
            place.name: Stored(path, *found[place.key], place.form)
            for place in places_of(family, part, config)
            if place.key in found
        }
        return StoredPart(part, family, config, tensors)

    def _fit_together(self, header: Header) -> None:
        """Make sure that every tensor of the U-Net has its place, and say what only two networks together tell."""
        unet, second = self.part("unet"), self.parts.get("text_encoder_2")
        if second is not None and "unet" not in self._configs:
            unet.config = with_pooled(unet.config, second.config)
        known = {stored.key for stored in unet.tensors.values()}
        foreign = [name for name in header.tensors if name.startswith(prefix_of("sd1", "unet")) and name not in known]
        if foreign:
            raise WeightsError(
                f"The U-Net of this checkpoint holds {len(foreign)} weights that its family's does not have, "
                f"{foreign[0]} among them.",
                where=self.where,
                mend="Get the plain model: extended and pruned U-Nets are not supported as a single file.",
            )


def _tensors(header: Header, family: KnownFamily, part: Part) -> "dict[str, tuple[str, TensorFacts]]":
    """The tensors of a network: the key behind its prefix -> the key in the file, and what the header says."""
    prefixes = [prefix_of(family, part)]
    prefixes += [_SGM_TEXT[family]] if part == "text_encoder" and family in _SGM_TEXT else []
    for prefix in prefixes:
        found = {name.removeprefix(prefix): (name, f) for name, f in header.tensors.items() if name.startswith(prefix)}
        if found:
            return {_with_text_model(key) if part == "text_encoder" else key: value for key, value in found.items()}
    return {}


def _with_text_model(key: str) -> str:
    return f"text_model.{key}" if _EARLY_TEXT.match(key) else key


def _spread(path: Path, header: Header) -> float | None:
    """The standard deviation of the tensor that tells the two Stable Diffusions 2 apart, where the file has it."""
    if SPREAD_KEY not in header.tensors:
        return None
    with TensorFile(path) as file:
        return float(file.read(SPREAD_KEY).double().std(correction=0))
