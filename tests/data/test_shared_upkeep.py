"""What lies at an address is looked through, made sound and made smaller as a folder is."""

from pathlib import Path
from uuid import uuid4

import fsspec
import torch

from trainer.data.cache import TensorCache, cache_key
from trainer.data.shared_store import Shared
from trainer.data.upkeep import facts_of, find_waste, prune, verify


def key(number: int) -> str:
    return cache_key("entry", number)


def filled(root: Path, address: str, identity: str, *shards: range) -> TensorCache:
    cache = TensorCache(root, identity, shared=Shared(address, 0))
    for numbers in shards:
        cache.write({key(number): {"mean": torch.full((9,), float(number))} for number in numbers})
    cache.save_index()
    return cache


def silent(_what: str, _done: int, _total: int) -> None:
    pass


def sound(root: Path, address: str, identity: str, numbers: range) -> list[int]:
    cache = TensorCache(root / "reader", identity, shared=Shared(address, 0))
    found = {number: cache.read(key(number)) for number in numbers}
    assert all(entry is None or entry["mean"].tolist() == [float(number)] * 9 for number, entry in found.items())
    return [number for number, entry in found.items() if entry is not None]


def test_what_is_shared_is_counted_verified_and_pruned(tmp_path: Path) -> None:
    address = f"memory://{uuid4().hex}/sd"
    filled(tmp_path, address, "first", range(3), range(3, 7))
    filled(tmp_path, address, "second", range(2))
    facts = {one.title: (one.entries, one.shards) for one in facts_of(tmp_path, address)}
    assert facts == {"first": (7, 2), "second": (2, 1)}
    files = fsspec.filesystem("memory")
    changed = torch.full((9,), 4.0).half().numpy().tobytes()
    for path in files.find(address.split("://")[1]):
        content = files.cat_file(path)
        if path.endswith(".arrow") and changed in content:
            files.pipe_file(path, content.replace(changed, changed[:-1] + b"\0"))
    files.pipe_file(f"{facts_of(tmp_path, address)[0].folder.title.split('://')[1]}/shard-foreign.arrow", b"no shard")
    health = {one.title: (one.rows, one.damaged_rows, one.damaged_files) for one in verify(tmp_path, silent, address)}
    assert sorted(sum(column) for column in zip(*health.values(), strict=True)) == [1, 1, 9]
    assert sound(tmp_path, address, "first", range(7)) == [0, 1, 2, 3, 5, 6]
    found = find_waste(tmp_path, {"first": {key(0), key(5)}}, silent, address)
    assert sorted((waste.title, waste.kept_rows, waste.wasted_rows) for waste in found) == [
        ("first", 2, 4),
        ("second", 0, 2),
    ]
    prune(found, silent)
    assert sound(tmp_path, address, "first", range(7)) == [0, 5]
    assert [one.title for one in facts_of(tmp_path, address)] == ["first"]
