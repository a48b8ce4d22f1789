"""An evaluation as `evaluation.json` has it; docs/evaluation.md says what each key means."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainer import __version__
from trainer.core.files import write_atomically
from trainer.evaluation.judgement import deviations
from trainer.evaluation.still import BANDS, Losses
from trainer.judging.evaluating import Candidate, Evaluation
from trainer.judging.findings import Finding, findings_of
from trainer.judging.pictures import thumbnail_name
from trainer.judging.recommending import Recommendation, recommend
from trainer.judging.remarks import Remarks, remarks_of

FORMAT: Final = 1
_COPIES: Final = 24  # samples that copy, shown beside what they copy
_DIGITS: Final = 6

Json = dict[str, Any]
"""JSON of many kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An evaluation with what follows from it."""

    evaluation: Evaluation
    remarks: Remarks
    findings: Sequence[Finding]
    recommendation: Recommendation

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Verdict":
        """What follows from it."""
        remarks = remarks_of(evaluation)
        findings = findings_of(evaluation, remarks)
        return cls(evaluation=evaluation, remarks=remarks, findings=findings, recommendation=recommend(evaluation))

    @property
    def root(self) -> Path:
        """The run's folder."""
        return self.evaluation.models.folder.root


def write_verdicts(
    verdicts: Sequence[Verdict], differences: Sequence[Mapping[str, Any]], seconds: float, copied_to: Path | None
) -> list[Path]:
    """Write each run's `evaluation.json`, its own part first; gives the files."""
    files: list[Path] = []
    for own in verdicts:
        order = [own, *(other for other in verdicts if other is not own)]
        runs = [_run(one, own.root, copied_to) for one in order]
        places = [verdicts.index(one) for one in order]
        told = [{**one, "values": [one["values"][place] for place in places]} for one in differences]
        content = {**_common(own.evaluation, seconds), "differences": told, "runs": runs}
        file = own.root / "evaluation.json"
        write_atomically(file, json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        files.append(file)
    return files


def _common(evaluation: Evaluation, seconds: float) -> Json:
    """What holds for all runs."""
    questions, features = evaluation.questions, evaluation.features
    measured = evaluation.base.measured.adherence is not None
    why = "this feature space holds no texts; give CLIP's weights with --features"
    settings = questions.settings
    return {
        "format": FORMAT,
        "trainer": __version__,
        "seconds": seconds,
        "features": {"kind": features.name, "name": features.title, "weights": features.weights_name},
        "adherence": {"measured": True, "name": features.title} if measured else {"measured": False, "why": why},
        "prompts": [
            {"text": text, "negative": questions.negative, "role": role}
            for role, texts in (("subject", questions.subject), ("ordinary", questions.ordinary))
            for text in texts
        ],
        "seeds": sorted({prompt.seed for prompt in questions.prompts()}),
        "drawing": {
            "sampler": questions.sampler.model_dump()["kind"],
            "steps": settings.steps,
            "guidance": settings.guidance,
            "width": questions.size[0],
            "height": questions.size[1],
        },
    }


def _run(verdict: Verdict, file_of: Path, copied_to: Path | None) -> Json:
    """One run's part of the file that lies in `file_of`."""
    evaluation, root = verdict.evaluation, verdict.root
    own = root == file_of
    base, choice, pictures = evaluation.base, evaluation.choice, evaluation.pictures
    references = base.measured.references

    def inside(path: Path | None) -> str | None:
        if path is None:
            return None
        return (
            path.relative_to(root).as_posix() if own and path.is_relative_to(root) else None if not own else path.name
        )

    def of_candidate(one: Candidate) -> Json:
        return {
            "scores": one.measured.scores(base.measured),
            "held_out": _losses(one.measured.held_out),
            "train": _losses(one.measured.train),
            "pictures": [inside(path) for path in one.pictures] if own else [],
        }

    return {
        "name": evaluation.models.folder.name,
        "folder": "." if own else None,
        "step": evaluation.models.steps[-1],
        "loss_bands": [[band / BANDS, (band + 1) / BANDS] for band in range(BANDS)],
        "held_out_pictures": len(pictures.held_out),
        "training_pictures": len(pictures.asked),
        "base": of_candidate(base),
        "real": {"likeness": references.likeness, "diversity": references.diversity},
        "candidates": [
            {
                "step": one.step,
                "strength": one.strength,
                "file": inside(one.file),
                **of_candidate(one),
                "score": float(choice.scores[place]),
                "score_range": [float(choice.low[place]), float(choice.high[place])],
                "wins": float(choice.wins[place]),
            }
            for place, one in enumerate(evaluation.candidates)
        ],
        "copies": _copies(evaluation, root) if own else [],
        "training": _training(verdict) if own else [],
        "findings": [_finding(one, verdict, own=own) for one in verdict.findings],
        "recommendation": _recommendation(verdict.recommendation, inside, copied_to if own else None),
    }


def _losses(losses: Losses | None) -> Json | None:
    if losses is None:
        return None
    return {"loss": float(losses.mean()), "bands": losses.mean(0).tolist()}


def _copies(evaluation: Evaluation, root: Path) -> list[Json]:
    """Samples of any candidate that copy, the nearest first."""
    training, prompts = list(evaluation.pictures.training), evaluation.questions.prompts()
    found: list[Json] = []
    for one in evaluation.candidates:
        measured = one.measured
        for place in np.flatnonzero(measured.copied).tolist():
            nearest = int(measured.nearest[place])
            found.append(
                {
                    "picture": one.pictures[place].relative_to(root).as_posix(),
                    "step": one.step,
                    "strength": one.strength,
                    "prompt": prompts[place].text,
                    "seed": prompts[place].seed,
                    "training": _thumbnail(training[nearest].key),
                    "name": training[nearest].name,
                    "distance": float(measured.distance[place]),
                    "usual": float(measured.references.spacing[nearest]),
                }
            )
    return sorted(found, key=lambda copy: copy["distance"] / copy["usual"])[:_COPIES]


def _training(verdict: Verdict) -> list[Json]:
    """The pictures whose losses were measured, the most remarkable first."""
    evaluation, remarks = verdict.evaluation, verdict.remarks
    steps = [evaluation.base, *evaluation.full]
    fit = remarks.fit
    far = None if fit is None else deviations(-fit.misfit)
    kinds = {key: [one.kind for one in verdict.findings if key in one.keys] for key in remarks.keys}
    rows = [
        {
            "key": key,
            "name": remarks.names[place],
            "caption": remarks.captions[place],
            "thumbnail": _thumbnail(key),
            "loss": [
                {"step": one.step, "bands": one.measured.train[place].tolist()}
                for one in steps
                if one.measured.train is not None
            ],
            "learned": float(remarks.learned[place]),
            "learned_z": float(remarks.learned_z[place]),
            "caption_gain": None if fit is None else float(fit.gain[place]),
            "caption_misfit": None if fit is None else float(fit.misfit[place]),
            "caption_z": None if far is None else float(far[place]),
            "copies": remarks.copies[place],
            "remarks": kinds[key],
        }
        for place, key in enumerate(remarks.keys)
    ]
    return sorted(rows, key=lambda row: (-len(row["remarks"]), row["caption_z"] or 0.0))


def _finding(finding: Finding, verdict: Verdict, *, own: bool) -> Json:
    names = {one.key: one.name for one in verdict.evaluation.pictures.training}
    return {
        "kind": finding.kind,
        "level": finding.level,
        "what": finding.what,
        "mend": finding.mend,
        "names": [names[key] for key in finding.keys],
        "pictures": [_thumbnail(key) for key in finding.keys] if own else [],
    }


def _recommendation(one: Recommendation, inside: Any, copied_to: Path | None) -> Json:  # Any: a local function
    return {
        "step": one.step,
        "strength": one.strength,
        "file": inside(one.file),
        "why": list(one.why),
        "sure": one.sure,
        "wins": one.wins,
        "rivals": [{"step": step, "strength": strength, "wins": wins} for step, strength, wins in one.rivals],
        "copied_to": None if copied_to is None else copied_to.name,
    }


def _thumbnail(key: str) -> str:
    return f"evaluation/training/{thumbnail_name(key)}"


def _plain(value: object) -> object:
    """The same with rounded numbers; those that JSON does not have become null."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
