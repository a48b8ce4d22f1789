"""WD taggers: the tags of drawn pictures, in the words of the picture boards."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from trainer.core.errors import TrainerError, WeightsError
from trainer.core.files import printable
from trainer.data.captioners.base import Describer, NetworkCaptioner
from trainer.data.captioners.loading import find_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

Category = Literal["rating", "character", "copyright", "artist", "general", "meta"]

_MODEL: Final = "model.onnx"
_TABLE: Final = "selected_tags.csv"
_MOST_TABLE_BYTES: Final = 1 << 26
_CATEGORIES: Final[dict[str, Category]] = {  # the numbers of the boards, and 9 as the taggers use it
    "0": "general",
    "1": "artist",
    "3": "copyright",
    "4": "character",
    "5": "meta",
    "9": "rating",
}
_WORD: Final = re.compile(r"[^\W_]{2}")


@dataclass(frozen=True, slots=True)
class Tag:
    """One line of the tagger's table."""

    name: str  # as the boards write it, with underscores
    category: Category


class WdTagger(NetworkCaptioner):
    """A WD tagger (version 3, and others of the same form): the tags of an anime picture, in the words of the boards.

    It needs onnxruntime, which comes with `pip install "sd-trainer[captions]"`.

    Source: SmilingWolf's wd-*-tagger-v3 on the Hugging Face hub, and the `app.py` of the space wd-tagger.
    """

    gives_tags: ClassVar[bool] = True

    kind: Literal["wd_tagger"] = "wd_tagger"
    weights: str = "SmilingWolf/wd-eva02-large-tagger-v3"
    """A folder with model.onnx and selected_tags.csv, or a name on the model hub."""
    threshold: float = Field(default=0.35, ge=0, le=1)
    """A tag is written if the tagger gives it at least this probability."""
    character_threshold: float = Field(default=0.85, ge=0, le=1)
    """The same for the names of characters."""
    categories: tuple[Category, ...] = ("character", "general")
    """Which kinds of tags are written, in this order; of `rating` the most probable one."""
    always_first: tuple[str, ...] = ()
    """Tags that stand in front wherever they are found, such as [1girl, 1boy]."""
    banned: tuple[str, ...] = ()
    """Tags that are never written; * at an end stands for anything: [text, "*background", "*_ears*"]."""
    order: Literal["probability", "table"] = "probability"
    """How the tags of one category are ordered: the surest first, or as in the tagger's own table."""
    underscores: bool = False
    """Write long_hair, not "long hair"; faces such as ^_^ are always left as they are."""
    escape_parentheses: bool = False
    r"""Write \( and \) where a tag has parentheses, as prompts of most programs need them."""

    def open(self, device: torch.device) -> Describer:
        """As the contract says."""
        folder = find_weights(self.weights, self.revision, (_MODEL, _TABLE), _lacks)
        network = _Network.opened(folder / _MODEL, device)
        tags = read_table(folder / _TABLE)
        if network.outputs not in (None, len(tags)):
            raise WeightsError(
                f"The tagger knows {network.outputs} tags, but its table lists {len(tags)}.",
                where=str(folder),
                mend="Download both files again; they belong together.",
            )

        def describe(pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
            prepared = np.stack([prepare(picture, network.side) for picture in pictures])
            return [self.text_of(tags, row) for row in network(prepared)]

        return describe

    def text_of(self, tags: Sequence[Tag], probabilities: "NDArray[np.floating[Any]]") -> str:
        """The tags of one picture, separated by commas.

        Args:
            tags: the tagger's table.
            probabilities: [number of tags], 0 .. 1.
        """
        found: list[str] = []
        for category in dict.fromkeys(self.categories):
            rows = [row for row, tag in enumerate(tags) if tag.category == category]
            found += [tags[row].name for row in self._chosen(category, rows, probabilities)]
        allowed = [name for name in found if not any(matches(name, pattern) for pattern in self.banned)]
        first = [name for wanted in self.always_first for name in allowed if matches(name, wanted)]
        return ", ".join(self._written(name) for name in dict.fromkeys([*first, *allowed]))

    def _chosen(self, category: Category, rows: Iterable[int], probabilities: "NDArray[np.floating[Any]]") -> list[int]:
        surest = sorted(rows, key=lambda row: -float(probabilities[row]))  # equal ones stay in the table's order
        if category == "rating":
            return surest[:1]
        least = self.character_threshold if category == "character" else self.threshold
        chosen = [row for row in surest if float(probabilities[row]) >= least]
        return chosen if self.order == "probability" else sorted(chosen)

    def _written(self, name: str) -> str:
        """A tag as captions write it."""
        # a name without two letters in a row is a face, whose underscore is its mouth
        words = name if self.underscores or not _WORD.search(name) else name.replace("_", " ")
        return words.replace("(", r"\(").replace(")", r"\)") if self.escape_parentheses else words


def prepare(picture: Image.Image, side: int) -> "NDArray[np.float32]":
    """What the network looks at: [side side 3], blue green red, 0 .. 255; white beside what is no square."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


def matches(name: str, pattern: str) -> bool:
    """Whether a tag is meant by `pattern`: the tag itself, or a part of it with * at one or both ends."""
    plain, wanted = _plain(name), _plain(pattern)
    core = wanted.strip("*")
    if not core:
        return plain == wanted
    if wanted.startswith("*") and wanted.endswith("*"):
        return core in plain
    if wanted.startswith("*"):
        return plain.endswith(core)
    return plain.startswith(core) if wanted.endswith("*") else plain == wanted


def read_table(path: Path) -> list[Tag]:
    """The tags that the network knows, in the order of its outputs.

    Raises:
        WeightsError: it is no table of tags.
    """
    try:
        if path.stat().st_size > _MOST_TABLE_BYTES:
            raise _no_table(path, "it is too large")
        with path.open(encoding="utf-8", newline="") as file:
            return [Tag(row["name"], _CATEGORIES.get(row["category"], "meta")) for row in csv.DictReader(file)]
    except KeyError as error:
        raise _no_table(path, f"it has no column {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _no_table(path, printable(str(error))) from error


@dataclass(frozen=True, slots=True)
class _Network:
    """A tagger's graph, ready to compute."""

    compute: "Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]"
    side: int  # pixels
    outputs: int | None  # None: it does not say
    at_once: int | None  # None: any number of pictures

    @classmethod
    def opened(cls, path: Path, device: torch.device) -> "_Network":
        try:
            import onnxruntime
        except ImportError as error:
            raise TrainerError(
                "The tagger needs onnxruntime, which is not installed.",
                where="captioner.kind=wd_tagger",
                mend='Install it: pip install "sd-trainer[captions]"  (onnxruntime-gpu for a GPU).',
            ) from error
        # the module has no types; its errors have no common base
        state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        providers = [one for one in (*wanted, "CPUExecutionProvider") if one in onnxruntime.get_available_providers()]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # what goes wrong comes to us as an exception
        try:
            session: Any = onnxruntime.InferenceSession(path, options, providers=providers)
        except (state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.NoSuchFile, state.RuntimeException,
                state.InvalidArgument, state.NotImplemented, RuntimeError) as error:  # fmt: skip
            first_line = str(error).strip().splitlines()[0]
            raise WeightsError(
                f"This tagger cannot be loaded: {printable(first_line)}", where=str(path), mend="Download it again."
            ) from error
        taken, given = session.get_inputs()[0], session.get_outputs()[0]
        shape = list(taken.shape)
        if len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int) or shape[1] != shape[2]:
            raise WeightsError(
                f"This is no WD tagger: it takes {shape}, not [pictures, side, side, 3].",
                where=str(path),
                mend="Use a model such as SmilingWolf/wd-vit-tagger-v3.",
            )
        known = given.shape[-1]
        return cls(
            compute=lambda pixels: session.run([given.name], {taken.name: pixels})[0],
            side=shape[1],
            outputs=known if isinstance(known, int) else None,
            at_once=shape[0] if isinstance(shape[0], int) else None,
        )

    def __call__(self, pixels: "NDArray[np.float32]") -> "NDArray[np.floating[Any]]":
        """Probabilities [pictures tags] of pixels [pictures side side 3]."""
        if self.at_once is None:
            return self.compute(pixels)
        # a graph for a fixed number: the last group is filled up by repeating its last picture
        rows: list[NDArray[np.floating[Any]]] = []
        for start in range(0, len(pixels), self.at_once):
            group = pixels[start : start + self.at_once]
            lacking = self.at_once - len(group)
            filled = np.concatenate([group, np.repeat(group[-1:], lacking, axis=0)]) if lacking else group
            rows.append(self.compute(filled)[: len(group)])
        return np.concatenate(rows)


def _lacks(folder: Path) -> str:
    return next((name for name in (_MODEL, _TABLE) if not (folder / name).is_file()), "")


def _plain(tag: str) -> str:
    return tag.strip().lower().replace(" ", "_")


def _no_table(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"This is no table of tags: {reason}.", where=str(path), mend="Download it again; it belongs to model.onnx."
    )
