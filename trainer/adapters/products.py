"""What LoHa and LoKr share."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator
from typing_extensions import Self, override

from trainer.adapters.beside_layers import AdapterBesideLayers
from trainer.adapters.parts import Target
from trainer.adapters.sizes import Size, numbers
from trainer.core.errors import RecipeError
from trainer.families.model import DiffusionModel
from trainer.weights.export import ExportSettings


class ProductAdapter(AdapterBesideLayers):
    """An adapter whose change is a product of products, built in every step."""

    rank_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of a layer's outputs that are not changed in a step; as LyCORIS has it."""
    effective_convolution: bool = False
    """Whether the 3x3 convolutions have a core between thin matrices (Tucker decomposition), which is smaller."""

    @model_validator(mode="after")
    def _files_have_no_cores(self) -> Self:
        if self.effective_convolution and self.start is not None:
            raise ValueError("start cannot be together with effective_convolution: files are written without cores.")
        return self

    def arguments(self, target: Target, sizes: Mapping[str, Size]) -> dict[str, Any]:  # Any: as peft takes them
        """What peft's configurations of both kinds say alike."""
        found = numbers(sizes)
        return {
            "target_modules": list(target.layers),
            "r": found.rank,
            "alpha": found.alpha,
            "rank_pattern": dict(found.ranks),
            "alpha_pattern": dict(found.alphas),
            "rank_dropout": self.rank_dropout,
            "module_dropout": self.module_dropout,
            "use_effective_conv2d": self.effective_convolution,
        }

    @property
    @override
    def draws_on_processor(self) -> bool:
        return self.rank_dropout > 0 or self.module_dropout > 0  # as peft draws them for products

    @override
    def check_export(self, model: DiffusionModel, settings: ExportSettings) -> None:
        if settings.layout == "diffusers":
            raise RecipeError(
                f"diffusers cannot load a {self.file_kind}, so there is no such file in its layout.",
                where="export.layout",
                mend="Leave it out: ComfyUI, Forge and A1111 load kohya's; or set it to peft.",
            )
