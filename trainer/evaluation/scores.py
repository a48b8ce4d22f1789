"""Scores of pictures from their features [N F], one row a picture; rows count by their direction, not their length."""

import numpy as np
from numpy.typing import NDArray

from trainer.core.errors import DataError
from trainer.evaluation.features import Rows

Wide = NDArray[np.float64]


def likeness(generated: Rows, references: Rows) -> float:
    """How like their nearest reference the generated pictures are, on average: a cosine, 1 where they are copies.

    References that were trained on reward copying too; those that were kept back do not.
    """
    return float(cosines(generated, references).max(1).mean())


def leave_one_out(references: Rows) -> float:
    """How like its nearest other reference each reference is: what `likeness` would say of true new pictures."""
    between = cosines(references, references)
    _need(len(references), 2)
    np.fill_diagonal(between, -np.inf)
    return float(between.max(1).mean())


def gap_closed(without: float, with_: float, real: float) -> float:
    """The share of the way from the base model to real pictures that the adapter has gone: 0 none, 1 all.

    Args:
        without: a score of the base model, such as its likeness.
        with_: the same score with the adapter.
        real: the same score of real pictures, such as `leave_one_out`.

    Raises:
        DataError: there is no way to go: the base model scores as high as real pictures.
    """
    if not real > without:
        raise DataError(
            f"The base model alone ({without:.3f}) is as like the references as they are like each other ({real:.3f}).",
            mend="Use references that the base model does not know, or prompts that name them by the trigger word.",
        )
    return (with_ - without) / (real - without)


def nearer(generated: Rows, references: Rows, ordinary: Rows) -> NDArray[np.bool_]:
    """For each generated picture whether its nearest picture is a reference and not an ordinary one, [N]."""
    return cosines(generated, references).max(1) > cosines(generated, ordinary).max(1)


def share_nearer(generated: Rows, references: Rows, ordinary: Rows) -> float:
    """The share of generated pictures that are nearer to a reference than to any ordinary picture, 0 .. 1.

    For pictures that have nothing to do with either, it is about the references' share of all of them.
    """
    return float(nearer(generated, references, ordinary).mean())


def bleed(generated: Rows, references: Rows, ordinary: Rows) -> int:
    """How many pictures of ordinary prompts came out nearer to a reference: the adapter spoils what it should not."""
    return int(nearer(generated, references, ordinary).sum())


def diversity(generated: Rows) -> float:
    """One minus the mean cosine of all pairs: near 0 where all pictures are the same."""
    _need(len(generated), 2)
    between = cosines(generated, generated)
    count = len(generated)
    return float(1 - (between.sum() - np.trace(between)) / (count * (count - 1)))


def kid(generated: Rows, references: Rows) -> float:
    """How far the two distributions lie apart: about 0 (of either sign) where they are the same.

    The unbiased squared maximum mean discrepancy under the kernel (cosine + 1)^3. Source: Binkowski et al. 2018,
    arXiv:1801.01401, with rows of unit length in place of Inception features divided by their width.
    """
    _need(min(len(generated), len(references)), 2)
    between = _kernel(generated, references).mean()
    return float(
        _mean_of_pairs(_kernel(generated, generated)) + _mean_of_pairs(_kernel(references, references)) - 2 * between
    )


def _kernel(one: Rows, other: Rows) -> Wide:
    return (cosines(one, other) + 1) ** 3


def _mean_of_pairs(kernel: Wide) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def cosines(one: Rows, other: Rows) -> Wide:
    """How like each row [N F] is to each other row [M F], [N M]."""
    _need(min(len(one), len(other)), 1)
    return _unit(one) @ _unit(other).T


def _unit(rows: Rows) -> Wide:
    wide = rows.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _need(found: int, least: int) -> None:
    if found < least:
        raise DataError(f"This score needs at least {least} pictures; there are {found}.")
