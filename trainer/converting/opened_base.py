"""A base model of any layout, its tensors read one by one under diffusers' names."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from torch import Tensor
from typing_extensions import Self, override

from trainer.core.errors import WeightsError
from trainer.core.tensor_files import TensorFile
from trainer.core.tensors import TensorFacts
from trainer.families.loading import open_weights
from trainer.families.stored_parts import Stored, StoredWeights
from trainer.weights.metadata import KnownFamily
from trainer.weights.opening import NAMINGS
from trainer.weights.original_names import PARTS, places_of
from trainer.weights.places import Place
from trainer.weights.stored_model import StoredModel


class OpenedBase(StoredModel):
    """A base model, open for reading; nothing of it stays in memory."""

    def __init__(self, weights: str) -> None:
        """Headers and small files are read and checked.

        Args:
            weights: as a recipe names them: `bundled`, a folder, a hub name, or a single file.

        Raises:
            WeightsError: there is no such model, or it is broken, a pickle, or not whole.
        """
        self.source: StoredWeights = open_weights(weights)
        self.source.check()
        self.where = self.source.where
        self.naming = NAMINGS[self.source.facts.family]
        self.places: dict[str, tuple[Place, Stored]] = {}
        for part in PARTS[self.source.facts.family]:
            stored = self.source.parts[part]
            for place in places_of(self.source.facts.family, part, stored.config):
                self.places[f"{part}.{place.name}"] = place, stored.tensors[place.name]
        self.tensors = {
            name: TensorFacts(stored.facts.dtype, place.shape) for name, (place, stored) in self.places.items()
        }
        self._closing = ExitStack()
        self._files: dict[Path, TensorFile] = {}

    @property
    def name(self) -> str:
        """The model's name without folders and suffix: what may be published of it."""
        path = Path(self.where)
        return path.stem if path.suffix == ".safetensors" else path.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @override
    def read(self, name: str) -> Tensor:
        place, stored = self.places[name]
        if stored.file not in self._files:
            self._files[stored.file] = self._closing.enter_context(TensorFile(stored.file))
        tensor = self._files[stored.file].read(stored.key, rows=stored.rows(place))
        return stored.as_ours(tensor, place)

    def weight_of(self, layer: str) -> Tensor:
        """The weight of a layer, by its canonical name, in the format on disk.

        Raises:
            WeightsError: the model has no such layer.
        """
        if f"{layer}.weight" not in self.tensors:
            raise WeightsError(
                "The base model has no such layer.",
                where=layer,
                mend="Make sure that adapter and base are of one family and size.",
            )
        return self.read(f"{layer}.weight")

    def check_family(self, family: KnownFamily | None, adapters: Sequence[Path]) -> None:
        """Make sure that adapters may be for this model.

        Raises:
            WeightsError: they are for another family.
        """
        own = self.source.facts.family
        if family not in (None, own):
            raise WeightsError(
                f"The adapters are for {family}, and the base model is {own}.",
                where=", ".join(map(str, adapters)),
                mend="Name the base model that they were trained on.",
            )
