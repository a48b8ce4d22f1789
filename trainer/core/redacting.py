"""What leaves the machine, or is kept beside a run, carries no secret and no private path."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath

HIDDEN = "[hidden]"
_SECRET_KEY = re.compile(r"(?i)token|secret|passw|api_?key|credential|authorization")
_SECRETS = re.compile(
    r"\bhf_\w{16,}"  # Hugging Face
    r"|\bwandb_v\d_\w{16,}|\b[0-9a-f]{40}\b"  # Weights & Biases
    r"|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}"  # GitHub
    r"|(?<=://)[^/\s@]+(?=@)"  # user and password in an address
)


def redacted(record: Mapping[str, object]) -> dict[str, object]:
    """`record`, which holds what JSON can hold, without secrets, and with absolute paths cut to their last name.

    A text is secret by its look (the keys that known services give out) or by the name of its key.
    """
    return {key: HIDDEN if _is_secret(key, part) else _clean(part) for key, part in record.items()}


def redacted_text(text: str) -> str:
    """`text` without secrets; if it is an absolute path, only its last name, for folders name people and projects."""
    if PurePosixPath(text).is_absolute():
        text = f".../{PurePosixPath(text).name}"
    elif PureWindowsPath(text).is_absolute():
        text = f".../{PureWindowsPath(text).name}"
    return _SECRETS.sub(HIDDEN, text)


def _clean(value: object) -> object:
    if isinstance(value, Mapping):
        return redacted({str(key): part for key, part in value.items()})
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, Sequence):
        return [_clean(part) for part in value]
    return value


def _is_secret(key: str, value: object) -> bool:
    # Numbers under such keys are settings, as in keep_tokens: 2.
    return isinstance(value, str) and bool(_SECRET_KEY.search(key))
