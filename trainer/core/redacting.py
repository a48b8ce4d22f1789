"""What leaves the machine, or is kept beside a run, carries no secret and no private path."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath

HIDDEN = "[hidden]"
_SECRET_KEY = re.compile(r"(?i)token|secret|passw|api_?key|credential|authorization")
_SECRETS = re.compile(
    r"\bhf_\w{16,}"  # Hugging Face
    r"|\bwandb_v\d_\w{16,}"  # Weights & Biases
    r"|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}"  # GitHub
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # Amazon
    r"|\bAIza[\w-]{35}"  # Google
    r"|\bsk-(?:[a-z]+-)?[0-9A-Za-z]{20,}"  # language models
    r"|\bxox[abeprs]-[\w-]{10,}"  # Slack
    r"|(?<=://)[^/\s@]+(?=@)"  # user and password in an address
)
_MAYBE = re.compile(r"\b[0-9a-f]{40}\b")  # older keys of Weights & Biases; a commit looks the same
_SHORTEST = 12  # signs of a value in the environment that is taken for a secret


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
    return _MAYBE.sub(HIDDEN, _hide(text))


def without_secrets(value: object) -> object:
    """`value`, which JSON can hold, without secrets in its texts; paths stay whole, for it stays on this machine."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(part) for key, part in value.items()}
    if isinstance(value, str):
        return _hide(value)
    if isinstance(value, Sequence):
        return [without_secrets(part) for part in value]
    return value


def has_secret(text: str) -> bool:
    """Whether a secret stands in `text`, as surely as its look can tell."""
    return _hide(text) != text


def _hide(text: str) -> str:
    """`text` without what looks like a secret, and without the secrets of this process's environment."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _SECRET_KEY.search(name) and not value.startswith("/"):
            text = text.replace(value, HIDDEN)
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
