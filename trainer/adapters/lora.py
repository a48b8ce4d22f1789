"""LoRA: two thin matrices beside each chosen layer; and DoRA, PiSSA and OLoRA, which are LoRAs with something more."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self, override

from trainer.adapters.beside_layers import AdapterBesideLayers
from trainer.adapters.chances import ModuleDropout, RankDropout
from trainer.adapters.injecting import ADAPTER, Beside, check_readable
from trainer.adapters.magnitudes import Axis, Magnitudes
from trainer.adapters.origins import Initial, Origin
from trainer.adapters.parts import Target
from trainer.adapters.sizes import Size, numbers
from trainer.core.errors import RecipeError
from trainer.families.model import DiffusionModel
from trainer.weights.adapter_state import AdapterKind
from trainer.weights.export import ExportSettings


class Lora(AdapterBesideLayers):
    """Two thin matrices beside each chosen layer; the base weights stay as they are.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """

    kind: Literal["lora"] = "lora"
    scaling: Literal["alpha/rank", "rank-stabilised"] = "alpha/rank"
    """rank-stabilised scales the update by alpha / the root of the rank instead (arXiv:2312.03732), so that a rank of
    64 and more learns as fast as a small one. Files say it in the usual way."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of a layer's inputs that the adapter does not see in a step."""
    rank_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of the ranks that an example does not use in a step."""
    decompose: Axis | None = None
    """DoRA: the lengths of a weight's columns (inputs) or rows (outputs) are trained beside their directions
    (arXiv:2402.09353). ComfyUI, Forge and A1111 load inputs as it is meant; diffusers and peft know outputs alone, in
    export.layout: diffusers or peft. A step takes longer."""
    initial: Initial = "random"
    """Where training begins: random, as LoRA always did; principal, at the greatest singular values of the base's
    weight (PiSSA, arXiv:2404.02948); orthogonal, at its QR decomposition (OLoRA, arXiv:2406.01775). The last two learn
    faster; their files are plain LoRAs of twice the rank."""

    @model_validator(mode="after")
    def _origins_stand_alone(self) -> Self:
        if self.initial == "random":
            return self
        others = {
            "decompose": self.decompose is not None,
            "rank_dropout": self.rank_dropout > 0,
            "max_norm": self.max_norm is not None,
            "start": self.start is not None,
        }
        given = [word for word, is_given in others.items() if is_given]
        if given:
            raise ValueError(f"initial: {self.initial} cannot be together with {given[0]}; leave one of them out.")
        return self

    @property
    @override
    def file_kind(self) -> AdapterKind:
        return "lora" if self.decompose is None else "dora"

    @override
    def check_export(self, model: DiffusionModel, settings: ExportSettings) -> None:
        if self.decompose == "inputs" and settings.layout != "kohya":
            raise RecipeError(
                f"A DoRA with lengths of the inputs cannot be written in the layout {settings.layout}.",
                where="export.layout",
                mend="Leave it out, or set adapter.decompose to outputs.",
            )

    @override
    def widest(self, width: int) -> int | None:
        return width if self.initial == "random" else width // 2

    @override
    def config(self, target: Target, sizes: Mapping[str, Size]) -> Any:
        from peft import LoraConfig

        found = numbers(sizes)
        return LoraConfig(
            target_modules=list(target.layers),
            r=found.rank,
            rank_pattern=dict(found.ranks),
            # peft annotates alphas as integers and only ever divides them
            lora_alpha=found.alpha,  # pyright: ignore[reportArgumentType]
            alpha_pattern=dict(found.alphas),  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            use_rslora=self.scaling == "rank-stabilised",
        )

    @property
    @override
    def beside(self) -> Beside | None:
        if not (self.module_dropout or self.rank_dropout or self.decompose or self.initial != "random"):
            return None
        return self._put_beside

    def _put_beside(self, layer: Any) -> Magnitudes | None:
        dropout = ModuleDropout(layer, ADAPTER, self.module_dropout) if self.module_dropout else None
        if self.rank_dropout:
            RankDropout(layer, ADAPTER, self.rank_dropout)
        if self.decompose is not None or self.initial != "random":
            check_readable(layer.base_layer)
        if self.initial != "random":
            Origin(layer, ADAPTER, self.initial)
        return None if self.decompose is None else Magnitudes(layer, ADAPTER, self.decompose, dropout)
