"""Object storage through fsspec: opening it, and one message for whatever its libraries raise."""

import errno
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from trainer.core.errors import RecipeError, TrainerError
from trainer.core.redacting import redacted_text

PACKAGES: Final = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "memory": "fsspec"}
"""The kinds of storage that put whole objects, and the package that each needs."""

_LIBRARIES: Final = (  # what they raise that is no OSError
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("asyncio", "TimeoutError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
_CREDENTIALS: Final = ("NoCredentialsError", "PartialCredentialsError", "GoogleAuthError", "ClientAuthenticationError")


@contextmanager
def asking(address: str, deed: str) -> Generator[None, None, None]:
    """Turns what the storage's library raises, after its own retries, into one TrainerError.

    Args:
        address: where it was asked.
        deed: what was to be done: read, or written.
    """
    try:
        yield
    except _failures() as error:
        raise _told(address, deed, error) from error


def file_system(address: str) -> tuple[Any, str]:
    """Fsspec's file system for an address, and the path there."""
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES.get(address.split("://")[0], "fsspec")
        raise RecipeError(
            f"The package {package}, which this address needs, is not installed.",
            where="data.cache.shared",
            mend=f"Install it with: pip install {package}",
        ) from error


def _failures() -> tuple[type[BaseException], ...]:
    """What a storage's library may raise; those that are not loaded raise nothing."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in _LIBRARIES)
    return (OSError, *(kind for kind in found if isinstance(kind, type)))


def _told(address: str, deed: str, error: BaseException) -> TrainerError:
    if isinstance(error, TrainerError):
        return error
    reason = redacted_text(str(error).strip().split("\n")[0].rstrip(".")) or type(error).__name__
    if isinstance(error, PermissionError) or type(error).__name__ in _CREDENTIALS:
        mend = (
            "Give this machine the right to list, read and write there; credentials come from the environment or the "
            "storage's own files (such as AWS_PROFILE), never from a recipe."
        )
    elif isinstance(error, FileNotFoundError):
        mend = "Make the bucket, or correct data.cache.shared."
    else:
        mend = (
            "Check the network and the address (an S3 server of your own: AWS_ENDPOINT_URL), and start again to go on: "
            "what was written stays."
        )
    return TrainerError(f"The shared cache cannot be {deed}: {reason}.", where=address, mend=mend)


def is_past_the_end(error: BaseException) -> bool:
    """Whether a range was refused because the object does not reach that far, as a shard does that was cut short."""
    return isinstance(error, OSError) and error.errno == errno.EINVAL  # s3fs says so; others give fewer bytes
