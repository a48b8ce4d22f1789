"""Adapters out of adapters: another layout, another rank, several as one."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from trainer.converting.done import Done
from trainer.converting.opened_base import OpenedBase
from trainer.converting.outputs import check_file, check_folder, replacing_folder
from trainer.core.device import Precision
from trainer.core.errors import WeightsError
from trainer.core.files import replacing
from trainer.core.progress import Phases
from trainer.core.tensors import read_header
from trainer.weights.adapter_state import AdapterState
from trainer.weights.derived_metadata import carried, in_common, merged_from, with_network
from trainer.weights.embeddings import export_embedding, read_embedding
from trainer.weights.export import ExportSettings, export_adapter
from trainer.weights.fitting import FitReport
from trainer.weights.layouts import Layout
from trainer.weights.low_rank import RankRule
from trainer.weights.merging import Weighted, merge
from trainer.weights.metadata import KnownFamily
from trainer.weights.opening import OpenedAdapters, open_adapters
from trainer.weights.products import Base
from trainer.weights.reading import read_adapter
from trainer.weights.recognising import kind_of
from trainer.weights.resizing import resize

_SAME: Final = 1e-6
_NO_PLACE: Final = "peft has no place for metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What all tools ask: how a result is written."""

    precision: Precision | None = None  # None: as the source is stored
    force: bool = False  # replace what has the name
    all_metadata: bool = False  # also what may tell of folders, captions and people
    family: KnownFamily | None = None  # where an adapter does not tell


def convert_adapter(path: Path, out: Path, layout: Layout, wishes: Wishes) -> Done:
    """Write an adapter or an embedding in another layout, and compare what can be read back.

    Args:
        path: a .safetensors file, or a folder of peft's.
        out: the new file; for peft a folder.
        layout: of the result.
        wishes: how it is written.

    Raises:
        RecipeError: `out` is there, or its name is of the wrong kind.
        WeightsError: the source is broken, or the layout cannot say it.
        NonFiniteError: a weight overflows in the number format.
    """
    (check_folder if layout == "peft" else check_file)(out, force=wishes.force)
    if path.is_file() and kind_of(list(read_header(path).tensors)) == "textual inversion":
        return _convert_embedding(path, out, wishes)
    opened = open_adapters([path], wishes.family)
    file = opened.adapters[0].file
    precision = wishes.precision or precision_of([file.state])
    metadata = carried(file.metadata, everything=wishes.all_metadata)
    settings = ExportSettings(precision=precision, layout=layout)
    with (replacing_folder if layout == "peft" else replacing)(out) as fresh:
        export_adapter(fresh, file.state, opened.naming, metadata.metadata, settings)
        _compare(fresh, file.state, opened, precision)
    lost = tuple(sorted(file.metadata)) if layout == "peft" else metadata.dropped
    notes = [*_rounding(file.state, precision), *_dropped(lost, _NO_PLACE if layout == "peft" else "")]
    facts = _facts(opened, file.state, precision) | {"from": file.layout, "to": layout}
    return Done(path=out, facts=facts, notes=tuple(notes), lists={"metadata_left_out": lost})


def resize_adapter(path: Path, out: Path, rule: RankRule, base: str | None, wishes: Wishes, progress: Phases) -> Done:
    """Write an adapter at another rank, as a LoRA in kohya's layout.

    Args:
        path: a .safetensors file, or a folder of peft's.
        out: the new file.
        rule: one rank for all layers, or a share of each layer's energy.
        base: the base model, for a DoRA.
        wishes: how it is written.
        progress: is told of it.

    Raises:
        RecipeError: `out` is there.
        WeightsError: the source is broken, or a DoRA without its base; or nothing is left.
        NonFiniteError: a weight overflows in the number format.
    """
    check_file(out, force=wishes.force)
    opened = open_adapters([path], wishes.family)
    source = opened.adapters[0]
    precision = wishes.precision or precision_of([source.state])
    with ExitStack() as stack:
        known = _base(stack, base, opened)
        state, fit = resize(source.state, rule, precision.dtype, known, progress)
    metadata = carried(source.file.metadata, everything=wishes.all_metadata)
    made = f"resized by {rule}; each layer keeps its alpha / rank; relative error {fit.relative_error:.4f}"
    written = with_network(metadata.metadata, state, out.stem, made)
    export_adapter(out, state, opened.naming, written, ExportSettings(precision=precision))
    notes = (*_kinds([source.state]), *_dropped(metadata.dropped, ""))
    return _fitted(out, opened, (state, fit), precision, notes)


def merge_adapters(
    wanted: Sequence[tuple[Path, float]],
    out: Path,
    rule: RankRule | None,
    base: str | None,
    wishes: Wishes,
    progress: Phases,
) -> Done:
    """Write one LoRA that does what several adapters do together, in kohya's layout.

    Args:
        wanted: adapters and how strongly each acts.
        out: the new file.
        rule: None joins their ranks, exactly; else the nearest of less rank.
        base: the base model, for a DoRA.
        wishes: how it is written.
        progress: is told of it.

    Raises:
        RecipeError: `out` is there, or an adapter that is no plain LoRA needs a rule.
        WeightsError: a source is broken, or they are of different families or sizes, or nothing is left.
        NonFiniteError: a weight overflows in the number format.
    """
    check_file(out, force=wishes.force)
    opened = open_adapters([path for path, _ in wanted], wishes.family)
    states = [one.state for one in opened.adapters]
    strengths = [strength for _, strength in wanted]
    precision = wishes.precision or precision_of(states)
    with ExitStack() as stack:
        known = _base(stack, base, opened)
        state, fit = merge(weighted(opened, strengths), rule, precision.dtype, known, progress)
    kept = [carried(one.file.metadata, everything=wishes.all_metadata) for one in opened.adapters]
    names = [one.name for one in opened.adapters]
    made = f"merged {'by joining ranks' if rule is None else f'with {rule}'}; alpha = rank"
    metadata = with_network(in_common([one.metadata for one in kept]), state, out.stem, made)
    metadata |= merged_from(names, strengths)
    export_adapter(out, state, opened.naming, metadata, ExportSettings(precision=precision))
    lost = tuple(sorted({key for one in kept for key in (*one.dropped, *one.metadata) if key not in metadata}))
    notes = (*_kinds(states), *_dropped(lost, "the sources say different things, or they are private"))
    return _fitted(out, opened, (state, fit), precision, notes)


def weighted(opened: OpenedAdapters, strengths: Sequence[float]) -> list[Weighted]:
    """Adapters with the strengths that go with them."""
    pairs = zip(opened.adapters, strengths, strict=True)
    return [Weighted(name=one.name, adapter=one.state, strength=strength) for one, strength in pairs]


def precision_of(states: Sequence[AdapterState]) -> Precision:
    """The finest number format among the tensors, at most float32."""
    found = {tensor.dtype for state in states for tensor in state.tensors.values()}
    if found <= {torch.float16}:
        return Precision.float16
    return Precision.bfloat16 if found <= {torch.bfloat16} else Precision.float32


def _convert_embedding(path: Path, out: Path, wishes: Wishes) -> Done:
    """An embedding of any program in the one form that all of them read."""
    file = read_embedding(path)
    vectors = file.embedding.vectors
    stored = {tensor.dtype for tensor in vectors.values()}
    precision = wishes.precision or next((p for p in Precision if stored == {p.dtype}), Precision.float32)
    metadata = carried(file.metadata, everything=wishes.all_metadata)
    export_embedding(out, file.embedding, metadata.metadata, ExportSettings(precision=precision))
    word = file.embedding.token
    notes = [f"Programs call the word by the file's name; here it was {word}."] if word else []
    facts: dict[str, str | int | float | list[str]] = {
        "kind": "textual inversion", "vectors": next(iter(vectors.values())).shape[0], "dtype": precision.value,
        "from": file.layout, "to": "kohya",
    }  # fmt: skip
    lists = {"metadata_left_out": metadata.dropped}
    return Done(path=out, facts=facts, notes=(*notes, *_dropped(metadata.dropped, "")), lists=lists)


def _base(stack: ExitStack, base: str | None, opened: OpenedAdapters) -> Base:
    """What is known of the model that adapters are for."""
    if base is None:
        return Base(family=opened.family)
    model = stack.enter_context(OpenedBase(base))
    model.check_family(opened.family, [one.path for one in opened.adapters])
    return Base(family=model.source.facts.family, weight=model.weight_of)


def _compare(written: Path, state: AdapterState, opened: OpenedAdapters, precision: Precision) -> None:
    """Make sure that what was written is the same adapter.

    Raises:
        WeightsError: it is not.
    """
    back = read_adapter(written, opened.naming).state
    layers = state.layers()
    same = back.kind == state.kind and back.layers() == layers
    tolerance = max(_SAME, 4 * torch.finfo(precision.dtype).eps)
    if not same or any(abs(back.norm(k) - state.norm(k)) > tolerance * (state.norm(k) + _SAME) for k in layers):
        raise WeightsError(
            "What was written reads back as another adapter.",
            where=str(written),
            mend="This is a mistake of the program: please report it.",
        )


def _fitted(
    out: Path,
    opened: OpenedAdapters,
    result: tuple[AdapterState, FitReport],
    precision: Precision,
    notes: Sequence[str],
) -> Done:
    state, fit = result
    facts = _facts(opened, state, precision) | {"rank": _ranks(fit), "layers_changed": len(fit.layers)}
    unchanged = [f"{len(fit.unchanged)} layers change nothing and were left out."] if fit.unchanged else []
    return Done(path=out, facts=facts, notes=(*notes, *unchanged), fit=fit)


def _ranks(fit: FitReport) -> str:
    least, most = fit.ranks
    return str(most) if least == most else f"{least} to {most}"


def _facts(
    opened: OpenedAdapters, state: AdapterState, precision: Precision
) -> "dict[str, str | int | float | list[str]]":
    return {
        "kind": state.kind,
        "family": opened.family or "unknown",
        "inputs": [one.name for one in opened.adapters],
        "dtype": precision.value,
        "layers": len(state.layers()),
    }


def _rounding(state: AdapterState, precision: Precision) -> list[str]:
    finer = precision_of([state]) != precision and precision is not Precision.float32
    return [f"Each weight was rounded to {precision.value}."] if finer else []


def _kinds(states: Sequence[AdapterState]) -> list[str]:
    others = sorted({state.kind for state in states} - {"lora"})
    return [f"Of kind {', '.join(others)}: the nearest LoRA was taken."] if others else []


def _dropped(keys: Sequence[str], why: str) -> list[str]:
    if not keys:
        return []
    reason = why or "they may tell of folders, captions or people, or nobody reads them; --all-metadata keeps them"
    shown = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
    return [f"{len(keys)} metadata were left out ({shown}): {reason}."]
