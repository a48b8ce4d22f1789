"""The best checkpoint -> the run's result; what was there before is kept under another name."""

import shutil
from pathlib import Path

from trainer.core.errors import CheckpointError
from trainer.core.files import not_written, replacing
from trainer.drawing.models import RunModels, last_of, step_of


def put_best(models: RunModels, file: Path | None, step: int) -> Path:
    """The run's result is now the adapter of `step`; the result of its last step lies beside it as NAME-last.

    Words that an adapter brings in files of their own go with it.

    Args:
        models: of the run.
        file: the adapter of `step`, as other programs load it; None: only its checkpoint is there.
        step: that is recommended.

    Raises:
        CheckpointError: there is no file of this step, or it is a folder.
        NotWrittenError: the disk refuses; everything is as it was.
    """
    recipe, result = models.recipe, models.recipe.export.result(models.folder.result)
    if file is None or file.is_dir() or result.is_dir():
        raise CheckpointError(
            f"Of step {step} there is no single file that could be copied.",
            where=str(models.folder.root),
            mend="Only its checkpoint is there, or the layout is a folder. With checkpoints.adapters a run keeps "
            "adapters on its way.",
        )
    if file == result:
        return result
    last = last_of(models.folder)
    try:
        if result.exists() and step_of(result) == models.steps[-1]:
            _copy(models, result, last)
        _copy(models, file, result)
    except OSError as error:
        raise not_written("The best adapter", result, error, needed=file.stat().st_size) from error
    return recipe.export.result(models.folder.result)


def _copy(models: RunModels, source: Path, target: Path) -> None:
    words, copies = (models.recipe.adapter.word_files(path) for path in (source, target))
    for one, other in [(source, target), *((words[word], copies[word]) for word in words)]:
        if one.exists() and one != other:
            with replacing(other) as temporary:
                shutil.copyfile(one, temporary)
