"""A name for an adapter on disk that changes when anything in it changes."""

import hashlib
from pathlib import Path

from trainer.core.errors import WeightsError
from trainer.core.files import digest_of


def digest_of_adapter(path: Path) -> str:
    """SHA-256 of a file; of peft's folder that of the names and contents of its files.

    Raises:
        WeightsError: there is no such thing.
    """
    try:
        if not path.is_dir():
            return digest_of(path)
        parts = [f"{file.relative_to(path).as_posix()}:{digest_of(file)}" for file in sorted(path.rglob("adapter_*"))]
    except OSError as error:
        raise WeightsError("There is no such file.", where=str(path), mend="Check the path.") from error
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()
