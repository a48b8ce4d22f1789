"""A base model's tensors on disk, by diffusers' names, read one by one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from trainer.core.errors import WeightsError
from trainer.core.tensors import TensorFacts
from trainer.weights.names import Naming


class StoredModel(ABC):
    """A model of which only the headers are read; its tensors come when they are asked for, and are not kept."""

    where: str  # how messages call it
    tensors: Mapping[str, TensorFacts]
    """By `<part>.<name>`, such as `unet.mid_block.resnets.0.conv1.weight`, in the order in which they lie on disk."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor in the format on disk.

        Raises:
            WeightsError: the file is broken.
        """


def layers_of(model: StoredModel, naming: Naming) -> dict[str, str]:
    """The names of the weights that an adapter can change, by the canonical names of their layers."""
    found: dict[str, str] = {}
    for name, facts in model.tensors.items():
        part, _, path = name.partition(".")
        if part in naming.parts and path.endswith(".weight") and len(facts.shape) in (2, 4):
            try:
                found[naming.canonical(name.removesuffix(".weight"))] = name
            except WeightsError:
                continue  # a layer that no adapter changes
    return found
