"""How fast entries come from a server that speaks S3, on this machine, and what each costs the reader's processor.

    python scripts/benchmark/shared_cache.py [ENTRIES] [BYTES]

The server is moto's, in a process of its own: its own rate is the limit here, so read the processor time of the reader,
which does not depend on it, and the number of requests.
"""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import fsspec

from trainer.data.cache import cache_key
from trainer.data.remote_folder import RemoteFolder
from trainer.data.shards import ShardStore

_BATCH: Final = 32
_PORT: Final = 5599


def main(entries: int = 512, size: int = 184_000) -> None:
    """Write entries, open the store anew, read all in batches, and print what it took."""
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{_PORT}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-c", f"from moto.server import main; main(['-p', '{_PORT}'])"], stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(15)
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("measured")
        with TemporaryDirectory() as near:
            _measure("s3://measured/cache", Path(near), entries, size)
    finally:
        server.terminate()


def _measure(address: str, near: Path, entries: int, size: int) -> None:
    keys = [cache_key("entry", number) for number in range(entries)]
    store = ShardStore(RemoteFolder(address, near))
    half = len(keys) // 2
    for part in (keys[:half], keys[half:]):
        _timed(
            "write", len(part) * size, lambda part=part: store.write({key: secrets.token_bytes(size) for key in part})
        )
    _timed("open without its index", 0, lambda: ShardStore(RemoteFolder(address, near)))
    store.save_index()
    _timed("open with its index", 0, lambda: ShardStore(RemoteFolder(address, near)))
    batches = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    _timed(
        f"read {len(keys)} entries, {_BATCH} at once", len(keys) * size, lambda: [store.get_all(one) for one in batches]
    )
    alone = keys[:64]
    _timed(f"read {len(alone)} one by one", len(alone) * size, lambda: [store.get(key) for key in alone])


def _timed(what: str, size: int, deed: Callable[[], object]) -> None:
    since, busy = time.perf_counter(), time.process_time()
    deed()
    seconds, own = time.perf_counter() - since, time.process_time() - busy
    rate = f", {size / seconds / 1e6:.1f} MB/s, {1e9 * own / size:.1f} s of a processor a GB" if size else ""
    print(f"{what}: {seconds:.2f} s, {own:.2f} s of a processor{rate}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
