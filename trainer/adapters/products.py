"""What LoHa and LoKr share."""

from pydantic import Field, model_validator
from typing_extensions import Self, override

from trainer.adapters.beside_layers import AdapterBesideLayers
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
