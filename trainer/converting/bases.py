"""Base models out of base models: another layout, adapters inside, and what one learned beyond another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from torch import Tensor
from typing_extensions import override

from trainer.converting.adapters import Wishes, weighted
from trainer.converting.done import Done
from trainer.converting.merging_in import MergedBase, write_merged_file, write_merged_folder
from trainer.converting.opened_base import OpenedBase
from trainer.converting.outputs import check_file, check_folder, replacing_folder
from trainer.core.device import Precision
from trainer.core.errors import RecipeError, WeightsError
from trainer.core.progress import Phases
from trainer.core.tensors import read_header
from trainer.weights.checkpoint import write_checkpoint, write_folder
from trainer.weights.checkpoint_metadata import CONFIGS_KEY
from trainer.weights.derived_metadata import carried, merged_from, of_checkpoint, of_difference
from trainer.weights.export import ExportSettings, export_adapter
from trainer.weights.extracting import extract
from trainer.weights.low_rank import RankRule
from trainer.weights.opening import open_adapters
from trainer.weights.original_names import PARTS, Part
from trainer.weights.stored_model import StoredModel

BaseLayout = Literal["single-file", "folder"]
_UNREAD: Final = ("position_ids", "logit_scale", "v_pred", "ztsnr")  # known without them, or made anew
_WORDS: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True, slots=True)
class _Work:
    """What is the same for every way of writing."""

    wishes: Wishes
    said: Mapping[str, str]  # metadata beside those of the base
    progress: Phases


def convert_base(weights: str, out: Path, layout: BaseLayout, wishes: Wishes, progress: Phases) -> Done:
    """Write a base model in another layout, tensor by tensor, and compare what can be read back.

    Args:
        weights: a folder, a single file, a hub name, or `bundled`.
        out: the new file or folder.
        layout: of the result.
        wishes: how it is written; without a number format it is the one of most of the U-Net's weights.
        progress: is told of it.

    Raises:
        RecipeError: `out` is there, or its name is of the wrong kind.
        WeightsError: the model is broken, or the layout cannot say it.
        NonFiniteError: a weight is not finite, or overflows in the number format.
    """
    _check_out(None, out, layout, wishes)
    with OpenedBase(weights) as base:
        _check_out(base, out, layout, wishes)
        precision = wishes.precision or stored_precision(base)
        lost = _write(base, base, out, layout, precision, _Work(wishes, {}, progress))
    notes = (*_mixed(base, precision), *_unused(base), *lost)
    facts = {"family": base.source.facts.family, "inputs": [base.name], "to": layout, "dtype": precision.value}
    return Done(path=out, facts=facts, notes=notes)


def merge_into_base(
    weights: str,
    wanted: Sequence[tuple[Path, float]],
    out: Path,
    layout: BaseLayout | None,
    wishes: Wishes,
    progress: Phases,
) -> Done:
    """Write a base model with adapters inside its weights.

    In the base's own layout everything else stays as it is, to the byte: other tensors, number formats, names.

    Args:
        weights: a folder, a single file, a hub name, or `bundled`.
        wanted: adapters and how strongly each acts.
        out: the new file or folder.
        layout: of the result; None means as the base.
        wishes: how it is written; without a number format each tensor keeps its own, or in another layout all get that
            of most of the U-Net's weights.
        progress: is told of it.

    Raises:
        RecipeError: `out` is there, or its name is of the wrong kind.
        WeightsError: a file is broken, or adapter and base do not fit.
        NonFiniteError: a weight is not finite, or overflows in the number format.
    """
    with OpenedBase(weights) as base:
        own: BaseLayout = "single-file" if Path(base.where).is_file() else "folder"
        layout = layout or own
        _check_out(base, out, layout, wishes)
        opened = open_adapters([path for path, _ in wanted], wishes.family or base.source.facts.family)
        strengths = [strength for _, strength in wanted]
        names = [one.name for one in opened.adapters]
        work = _Work(wishes, merged_from([base.name, *names], [1.0, *strengths]), progress)
        precision = wishes.precision or (None if layout == own else stored_precision(base))
        merged = MergedBase(base, weighted(opened, strengths), None if precision is None else precision.dtype)
        if precision is None or layout == own:
            lost = _rewrite(merged, out, layout, work)
        else:
            lost = [*_mixed(base, precision), *_unused(base), *_write(base, merged, out, layout, precision, work)]
    facts = {
        "family": base.source.facts.family, "inputs": [base.name, *names], "to": layout,
        "dtype": "as it was" if precision is None else precision.value, "layers_changed": len(merged.acting),
    }  # fmt: skip
    return Done(path=out, facts=facts, notes=tuple(lost))


def extract_lora(base: str, tuned: str, out: Path, rule: RankRule, wishes: Wishes, progress: Phases) -> Done:
    """Write what one model has learned beyond another as a LoRA in kohya's layout.

    Args:
        base: the model that the LoRA is to be used with.
        tuned: what was made out of it.
        out: the new file.
        rule: how much rank a layer gets.
        wishes: how it is written; without a number format it is that of most of the tuned U-Net's weights.
        progress: is told of it.

    Raises:
        RecipeError: `out` is there.
        WeightsError: a model is broken, or they are of different families or sizes, or do not differ.
        NonFiniteError: a weight is not finite, or overflows in the number format.
    """
    check_file(out, force=wishes.force)
    with OpenedBase(base) as before, OpenedBase(tuned) as after:
        one, two = before.source.facts, after.source.facts
        if one.family != two.family:
            raise WeightsError(
                f"These models are of different families: {before.name} is {one.family}, {after.name} is {two.family}.",
                where=f"{before.where}, {after.where}",
                mend="Name the model that was trained further, and the one that it started from.",
            )
        precision = wishes.precision or stored_precision(after)
        found = extract(before, after, before.naming, rule, precision.dtype, progress)
        made = f"difference of {after.name} and {before.name} by {rule}; relative error {found.fit.relative_error:.4f}"
        metadata = of_difference(found.state, out.stem, before.name, one.family, two.prediction)
        metadata |= {"trainer.made": made}
        export_adapter(out, found.state, before.naming, metadata, ExportSettings(precision=precision))
    notes: list[str] = []
    if one.prediction != two.prediction:
        notes.append(f"The base predicts {one.prediction} and the other {two.prediction}: use the LoRA as the latter.")
    if found.fit.unchanged:
        notes.append(f"{len(found.fit.unchanged)} layers do not differ and were left out.")
    if found.beyond:
        shown = ", ".join(found.beyond[:3])
        notes.append(f"{len(found.beyond)} tensors differ that no LoRA can hold ({shown}, ...): they were left out.")
    least, most = found.fit.ranks
    facts = {
        "family": one.family, "inputs": [before.name, after.name], "dtype": precision.value,
        "layers": len(found.fit.layers), "rank": str(most) if least == most else f"{least} to {most}",
    }  # fmt: skip
    return Done(path=out, facts=facts, notes=tuple(notes), fit=found.fit, lists={"beyond": found.beyond})


def stored_precision(base: OpenedBase) -> Precision:
    """The number format of most of the U-Net's weights; float16 where that has 8 bits."""
    said = base.source.facts.precision
    if said in {"float32", "float64"}:
        return Precision.float32
    return Precision.bfloat16 if said == "bfloat16" else Precision.float16


def _check_out(base: OpenedBase | None, out: Path, layout: BaseLayout, wishes: Wishes) -> None:
    (check_file if layout == "single-file" else check_folder)(out, force=wishes.force)
    if base is not None and out.exists() and out.resolve() == Path(base.where).resolve():
        raise RecipeError("A model cannot be written over itself.", where=str(out), mend="Choose another name.")


def _write(
    base: OpenedBase, model: StoredModel, out: Path, layout: BaseLayout, precision: Precision, work: _Work
) -> list[str]:
    """Write a model in a layout that is not its own; gives what was lost."""
    source = base.source
    family = source.facts.family
    parts: dict[Part, Mapping[str, Tensor]] = {part: _Tensors(model, part, work.progress) for part in PARTS[family]}
    configs = {name: source.config(name) for name in (*PARTS[family], "scheduler")}
    metadata = _header_of(base)
    if layout == "single-file":
        kept = carried(metadata, everything=work.wishes.all_metadata).metadata
        said = {**of_checkpoint(out.stem, family, source.facts.prediction), **kept, **work.said}
        said.pop(CONFIGS_KEY, None)
        write_checkpoint(out, family, parts, configs, said, precision.dtype)
        return ["A single file holds no tokenizer: programs use CLIP's own."] if _is_folder(base) else []
    names: tuple[Literal["tokenizer", "tokenizer_2"], ...] = ("tokenizer", "tokenizer_2")
    tokenizers = {name: source.tokenizer(name) for name in names[: 1 + (family == "sdxl")]}
    with replacing_folder(out) as fresh:
        write_folder(fresh, family, parts, configs, tokenizers, precision.dtype)
    remade = {**of_checkpoint("", family, source.facts.prediction), "modelspec.title": None}
    lost = sorted(
        key for key, text in metadata.items() if remade.get(key) != text and key not in {CONFIGS_KEY, "format"}
    )
    return [f"A folder has no place for metadata: {', '.join(lost[:4])}{', ...' * (len(lost) > 4)}."] if lost else []


def _rewrite(merged: MergedBase, out: Path, layout: BaseLayout, work: _Work) -> list[str]:
    """Write a model in its own layout; gives what was lost."""
    source = Path(merged.base.where)
    if layout == "single-file":
        header = _header_of(merged.base)
        kept = carried(header, everything=work.wishes.all_metadata)
        form = {key: header[key] for key in ("format",) if key in header}
        said = {**form, **kept.metadata, "modelspec.title": out.stem, **work.said}
        write_merged_file(merged, source, out, said, work.progress)
        return []
    with replacing_folder(out) as fresh:
        behind = write_merged_folder(merged, source, fresh, work.said, work.progress)
    return (
        [f"{len(behind)} files of weights that are not used were left behind, {behind[0]} among them."]
        if behind
        else []
    )


def _unused(base: OpenedBase) -> list[str]:
    """What a checkpoint holds beside the networks that draw, as a moving average of the weights."""
    if _is_folder(base):
        return []
    used = {stored.key for _, stored in base.places.values()}
    others = [key for key in read_header(Path(base.where)).tensors if key not in used and not key.endswith(_UNREAD)]
    return [f"{len(others)} tensors that no network reads were left out, {others[0]} among them."] if others else []


def _mixed(base: OpenedBase, precision: Precision) -> list[str]:
    others: dict[str, set[str]] = {}
    for name, facts in base.tensors.items():
        word = _WORDS.get(facts.dtype, facts.dtype)
        if word != precision.value:
            others.setdefault(word, set()).add(name.partition(".")[0])
    return [
        f"What was {word} ({', '.join(sorted(parts))}) is {precision.value} now."
        for word, parts in sorted(others.items())
    ]


def _header_of(base: OpenedBase) -> dict[str, str]:
    return {} if _is_folder(base) else dict(read_header(Path(base.where)).metadata)


def _is_folder(base: OpenedBase) -> bool:
    return Path(base.where).is_dir()


class _Tensors(Mapping[str, Tensor]):
    """The tensors of one network, each made when it is asked for; tells how many were."""

    def __init__(self, model: StoredModel, part: str, progress: Phases) -> None:
        self._model, self._part, self._progress = model, part, progress
        self._names = [name.partition(".")[2] for name in model.tensors if name.startswith(f"{part}.")]
        self._made: set[str] = set()  # some are asked for twice

    @override
    def __getitem__(self, name: str) -> Tensor:
        if f"{self._part}.{name}" not in self._model.tensors:
            raise KeyError(name)
        if name not in self._made:
            self._made.add(name)
            self._progress(f"writing {self._part}", len(self._made), len(self._names))
        return self._model.read(f"{self._part}.{name}")

    @override
    def __contains__(self, name: object) -> bool:
        return f"{self._part}.{name}" in self._model.tensors

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @override
    def __len__(self) -> int:
        return len(self._names)
