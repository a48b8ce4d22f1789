"""Adapter files that belong together -> their states, after a look at whose they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast

from trainer.core.errors import WeightsError
from trainer.core.tensors import read_header
from trainer.weights.adapter_state import AdapterState
from trainer.weights.metadata import KnownFamily
from trainer.weights.names import SD_NAMES, SDXL_NAMES, Naming
from trainer.weights.peft_configs import PEFT_FILE
from trainer.weights.reading import AdapterFile, read_adapter
from trainer.weights.recognising import family_of, kind_of

NAMINGS: Final[Mapping[KnownFamily, Naming]] = MappingProxyType({"sd1": SD_NAMES, "sd2": SD_NAMES, "sdxl": SDXL_NAMES})
"""How the layers of each family are called."""

_ONE_FAMILY: Final = "Choose adapters of one family."
ADAPTER_KINDS: Final = frozenset({"lora", "dora", "loha", "lokr"})


@dataclass(frozen=True, slots=True)
class OpenedAdapter:
    """An adapter that was read, and what its file is called."""

    path: Path
    file: AdapterFile

    @property
    def name(self) -> str:
        """The file's name without folders and suffix: what may be published of it."""
        return self.path.stem if self.path.suffix == ".safetensors" else self.path.name

    @property
    def state(self) -> AdapterState:
        """The adapter."""
        return self.file.state


@dataclass(frozen=True, slots=True)
class OpenedAdapters:
    """Adapters of one family."""

    adapters: tuple[OpenedAdapter, ...]
    family: KnownFamily | None  # None where no file tells it, as of very small models
    naming: Naming


def open_adapters(paths: Sequence[Path], family: KnownFamily | None = None) -> OpenedAdapters:
    """Read adapters that are meant for one model.

    Args:
        paths: .safetensors files, or peft's folders.
        family: as a person says it, where files do not tell.

    Raises:
        WeightsError: a file is missing, broken or no adapter; or they are of different families.
    """
    known: dict[Path, KnownFamily] = {}
    for path in paths:
        if (one := family_of_adapter(path)) is not None:
            known[path] = one
    agreed: KnownFamily | None = family if family is not None else next(iter(known.values()), None)
    if any(one != agreed for one in known.values()):
        said = ", ".join(f"{path.name} is for {one}" for path, one in known.items())
        raise WeightsError(
            f"These adapters are for different families of models: {said}.",
            where=", ".join(str(path) for path in known),
            mend=f"Choose adapters of {family}, which the base model or --family says." if family else _ONE_FAMILY,
        )
    if agreed is not None:
        naming = NAMINGS[agreed]
        return OpenedAdapters(tuple(OpenedAdapter(path, read_adapter(path, naming)) for path in paths), agreed, naming)
    # the names of SD1 and SD2 are the same; what is read by neither is said in their words
    return OpenedAdapters(tuple(OpenedAdapter(path, read_adapter(path, SD_NAMES)) for path in paths), None, SD_NAMES)


def holds_adapter(path: Path) -> bool:
    """Whether there is an adapter or an embedding at a path, by names alone; what is not there may be a hub's model.

    Raises:
        WeightsError: the file is a pickle or broken.
    """
    if path.is_file() or path.suffix == ".safetensors":
        return kind_of(list(read_header(path).tensors)) in {*ADAPTER_KINDS, "textual inversion"}
    return path.is_dir() and bool(_peft_files(path))


def family_of_adapter(path: Path) -> KnownFamily | None:
    """The family that an adapter is for; None where its tensors do not tell.

    Raises:
        WeightsError: it is missing, broken or no adapter.
    """
    files = _peft_files(path) if path.is_dir() else [path]
    if not files:
        raise WeightsError(
            f"There is no {PEFT_FILE} in this folder.",
            where=str(path),
            mend="Name a .safetensors file or peft's folder.",
        )
    told: set[str] = set()
    for file in files:
        header = read_header(file)
        kind = kind_of(list(header.tensors))
        if kind not in ADAPTER_KINDS:
            raise WeightsError(
                f"This file is no adapter but of the kind `{kind}`.",
                where=str(file),
                mend="Look at it with `trainer weights inspect`.",
            )
        told.add(family_of(header, kind).partition(" ")[0])
    if any(file.parent.name == "text_encoder_2" for file in files):
        told.add("sdxl")
    told -= {"unknown"}
    return cast("KnownFamily", told.pop()) if len(told) == 1 else None  # the words of `family_of` are the families


def _peft_files(folder: Path) -> list[Path]:
    places = [folder, *(folder / part for part in SDXL_NAMES.parts)]
    return [place / PEFT_FILE for place in places if (place / PEFT_FILE).is_file()]
