"""The cache at an address for many machines: in memory, and on a server that speaks S3."""

import importlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch
from pydantic import ValidationError

from trainer.batch import Batch
from trainer.core.errors import DataError, RecipeError, TrainerError
from trainer.core.seeds import Seeds
from trainer.data import remote_folder, shared_store
from trainer.data.batches import CachedBatches, DataSettings
from trainer.data.cache import CacheSettings, TensorCache, cache_key
from trainer.data.filling import CacheReport, encode_again, fill_cache
from trainer.data.planning import Share
from trainer.data.remote_folder import RemoteFolder
from trainer.data.scanning import scan
from trainer.data.shard_folders import Span
from trainer.data.shards import ShardStore
from trainer.data.shared_store import Shared

Painter = Callable[..., Path]
Change = Callable[..., DataSettings]
SEEDS = Seeds(5)
PLENTY = 1_000_000_000
SECRET = "very-secret-key-0123456789"  # noqa: S105 - planted, to be looked for


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A server of this machine that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """fsspec's file system of that server, which this process finds as a person's would: by its environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files: Any = fsspec.filesystem("s3", use_listings_cache=False)
    yield files
    files.clear_instance_cache()


@pytest.fixture(params=["memory", "s3"])
def address(request: pytest.FixtureRequest) -> str:
    """An address at which nothing lies yet."""
    name = f"cache-{uuid4().hex[:8]}"
    if request.param == "memory":
        return f"memory://{name}/sd"
    request.getfixturevalue("s3").mkdir(name)
    return f"s3://{name}/sd"


@pytest.fixture
def settings(paint: Painter, tmp_path: Path) -> Change:
    """Writes six pictures; gives settings whose entries lie at an address."""
    for number in range(6):
        paint(f"{number}.png", shade=number, caption=f"cat, number {number}")

    def make(address: str, *, machine: str = "one", **cache: Any) -> DataSettings:
        source = {"kind": "folder", "path": tmp_path / "pictures"}
        cache = {"folder": tmp_path / machine, "shared": address, "memory": 0, **cache}
        return DataSettings.model_validate({"sources": [source], "resolution": 64, "cache": cache})

    return make


def fill(settings: DataSettings, encoders: Any, share: Share | None = None) -> CacheReport:
    return fill_cache(scan(settings.parts, settings.limits).accepted, settings, encoders.both, SEEDS, share=share)


def opened(settings: DataSettings, encoders: Any, world: int = 1, rank: int = 0) -> CachedBatches:
    examples = scan(settings.parts, settings.limits).accepted
    return CachedBatches(examples, settings, encoders.both, SEEDS, batch=3 // world, world=world, rank=rank)


def an_epoch(batches: CachedBatches) -> list[Batch]:
    return list(islice(batches.starting_at(0), batches.batches_per_epoch))


def files_of(address: str) -> Any:
    return fsspec.core.url_to_fs(address, use_listings_cache=False)[0]


def objects(address: str, ending: str = ".arrow") -> list[str]:
    files = files_of(address)
    return sorted(path for path in files.find(address.split("://")[1]) if path.endswith(ending))


def key(number: int) -> str:
    return cache_key("entry", number)


def entries(numbers: Sequence[int]) -> dict[str, bytes]:
    return {key(number): f"content {number} ".encode() * 50 for number in numbers}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """Every range that is asked of an address."""
    asked: list[Span] = []
    plain = RemoteFolder.read

    def counting(self: RemoteFolder, spans: Sequence[Span]) -> list[bytes | None]:
        asked.extend(spans)
        return plain(self, spans)

    monkeypatch.setattr(RemoteFolder, "read", counting)
    return asked


def test_one_machine_fills_and_another_reads(settings: Change, address: str, encoders: Any, tmp_path: Path) -> None:
    report = fill(settings(address), encoders)
    assert (report.encoded_pictures, report.encoded_captions) == (6, 6)
    plain = DataSettings.model_validate(
        settings(address).model_dump() | {"cache": {"folder": tmp_path / "plain", "memory": 0}}
    )
    fill(plain, encoders)
    calls = len(encoders.pictures)
    other = settings(address, machine="two")
    again = fill(other, encoders)
    assert (again.encoded_pictures, again.reused_pictures) == (0, 6)
    assert len(encoders.pictures) == calls
    for here, there in zip(an_epoch(opened(plain, encoders)), an_epoch(opened(other, encoders)), strict=True):
        assert torch.equal(here.latents, there.latents)
        assert here.keys == there.keys


def test_a_store_opens_with_and_without_its_index(address: str, tmp_path: Path) -> None:
    store = ShardStore(RemoteFolder(address, tmp_path))
    for start in range(0, 9, 3):
        store.write(entries(range(start, start + 3)))
    for indexed in (False, True):
        if indexed:
            store.save_index()
            assert objects(address, "index.safetensors")
        again = ShardStore(RemoteFolder(address, tmp_path))
        assert again.keys() == sorted(entries(range(9)))
        assert again.get_all(entries(range(9))) == entries(range(9))
        assert again.get(key(99)) is None
    assert len(store.shards) == 3


def test_opening_reads_no_contents(
    address: str, tmp_path: Path, reads: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large shard only both ends are asked for; and of one whose list of rows is longer than that, all of it."""
    monkeypatch.setattr(remote_folder, "_HEAD", 4096)
    monkeypatch.setattr(remote_folder, "_TAIL", 2048)
    large = {key(number): bytes([number]) * 100_000 for number in range(10)}
    ShardStore(RemoteFolder(address, tmp_path)).write(large)
    opened = ShardStore(RemoteFolder(address, tmp_path))
    assert opened.known(list(large)).all()
    assert sum(span.length for span in reads) == 4096 + 2048
    assert opened.get_all(large) == large
    many = {key(number): b"x" for number in range(100, 300)}  # 44 bytes of rows each
    opened.write(many)
    assert ShardStore(RemoteFolder(address, tmp_path)).known(list(many)).all()


def test_each_process_reads_its_share_and_each_entry_once(
    settings: Change, address: str, encoders: Any, reads: list[Span]
) -> None:
    fill(settings(address), encoders)
    alone = settings(address, machine="alone")
    whole = opened(alone, encoders)
    reads.clear()
    expected = an_epoch(whole)
    everything = set(reads)
    assert len(reads) == len(everything) == 12  # six pictures, six texts
    shares: list[set[Span]] = []
    seen: list[str] = []
    for rank in range(3):
        batches = opened(settings(address, machine=f"machine {rank}"), encoders, world=3, rank=rank)
        reads.clear()
        seen += [one for batch in an_epoch(batches) for one in batch.keys]
        shares.append(set(reads))
        assert len(reads) == 4
    assert sorted(seen) == sorted(one for batch in expected for one in batch.keys)
    assert set().union(*shares) == everything
    assert sum(map(len, shares)) == len(everything)


def test_processes_encode_their_shares_into_one_address(settings: Change, address: str, encoders: Any) -> None:
    done = [fill(settings(address, machine=f"{rank}"), encoders, Share(rank, 2)) for rank in range(2)]
    assert sum(report.encoded_pictures for report in done) == 6
    assert all(report.encoded_pictures for report in done[:1])
    assert fill(settings(address, machine="third"), encoders).encoded_pictures == 0


def test_copies_are_read_instead_up_to_their_limit(
    settings: Change, address: str, encoders: Any, reads: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings(address), encoders)
    monkeypatch.setattr(shared_store, "_SHARD_BYTES", 1)
    for room, again in ((PLENTY, 0), (0, 12)):
        near = settings(address, machine=f"near {room}", copies=room)
        batches = opened(near, encoders)
        first = an_epoch(batches)
        reads.clear()
        second = an_epoch(batches)
        assert len(reads) == again
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, second, strict=True))
        kept = sum(path.stat().st_size for path in near.cache.folder.glob("*/shard-*.arrow"))
        assert (kept > 0) == (room > 0)


def test_a_damaged_copy_is_read_again_from_the_address(address: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shared_store, "_SHARD_BYTES", 1)
    cache = TensorCache(tmp_path, "one", shared=Shared(address, PLENTY))
    cache.write({key(1): {"mean": torch.arange(9.0)}})
    assert cache.read(key(1)) is not None
    (copy,) = cache.folder.glob("shard-*.arrow")
    content = bytearray(copy.read_bytes())
    content[content.index(torch.arange(9.0).half().numpy().tobytes()) + 2] ^= 1
    copy.write_bytes(content)
    again = TensorCache(tmp_path, "one", shared=Shared(address, PLENTY)).read(key(1))
    assert again is not None
    assert torch.equal(again["mean"], torch.arange(9.0))


@pytest.mark.parametrize("damage", ["bit", "half", "empty", "text", "gone"])
def test_a_damaged_shard_is_named_and_its_entries_are_made_again(
    settings: Change, address: str, encoders: Any, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(settings(address), encoders)
    before = an_epoch(opened(settings(address, machine="before"), encoders))
    victim = next(path for path in objects(address) if len(files_of(address).cat_file(path)) > 6 * 1024)
    files = files_of(address)
    whole: bytes = files.cat_file(victim)
    middle = len(whole) // 2
    changed = {
        "bit": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
        "half": whole[:middle],
        "empty": b"",
        "text": b"I am no shard",
    }
    if damage == "gone":
        files.rm_file(victim)
    else:
        files.pipe_file(victim, changed[damage])
    other = settings(address, machine="other")
    with caplog.at_level(logging.WARNING, "trainer"):
        fill(other, encoders)
        batches = opened(other, encoders)
        batches.mend = lambda pictures, words: encode_again(other, encoders.both, pictures=pictures, words=words)
        after = an_epoch(batches)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(before, after, strict=True))
    if damage != "gone":
        assert victim.rsplit("/", 1)[-1] in caplog.text
    # and whoever comes next finds it mended
    assert all(batch is not None for batch in an_epoch(opened(settings(address, machine="next"), encoders)))


def test_a_shard_cut_short_while_it_is_read_is_no_end(address: str, tmp_path: Path) -> None:
    store = ShardStore(RemoteFolder(address, tmp_path))
    store.write(entries(range(9)))
    (victim,) = objects(address)
    files_of(address).pipe_file(victim, files_of(address).cat_file(victim)[:700])
    assert store.get_all(entries(range(9))) == {}
    assert store.get(key(3)) is None


def test_what_is_written_while_another_reads_is_seen_after_a_refresh(address: str, tmp_path: Path) -> None:
    reader, writer = (ShardStore(RemoteFolder(address, tmp_path / name)) for name in "ab")
    writer.write(entries(range(3)))
    assert key(1) not in reader
    reader.refresh()
    assert reader.get(key(1)) == entries([1])[key(1)]


@pytest.mark.parametrize(
    "text",
    [
        f"s3://somebody:{SECRET}@bucket/prefix",
        f"s3://bucket/prefix?X-Amz-Signature={SECRET}",
        "s3:/bucket",
        "bucket/prefix",
        "s3://",
        "http://host/prefix",
        "sftp://host/prefix",
        "filecache::s3://bucket",
        "s3://bucket/../other",
        "s3://bucket/a b",
        "s3://bucket\n",
    ],
)
def test_what_is_no_address_is_refused_and_no_secret_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        CacheSettings(folder=tmp_path, shared=text)
    assert SECRET not in caught.value.errors(include_input=False)[0]["msg"]


def test_without_its_package_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it could not be imported
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(RecipeError, match="s3fs") as caught:
        RemoteFolder("s3://bucket/prefix", tmp_path)
    assert "pip install s3fs" in str(caught.value)


def test_a_bucket_that_is_not_there_is_told_before_anything_is_encoded(
    settings: Change, s3: Any, encoders: Any
) -> None:
    with pytest.raises(TrainerError) as caught:
        fill(settings("s3://no-such-bucket-here/prefix"), encoders)
    assert "Make the bucket" in str(caught.value)
    assert encoders.pictures == []


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_a_bucket_that_refuses_is_one_message(
    settings: Change, s3: Any, encoders: Any, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    async def refusing(*_: Any, **__: Any) -> None:
        raise ClientError({"Error": {"Code": code, "Message": "you may not"}}, "GetObject")

    from s3fs.errors import translate_boto_error

    async def translated(*arguments: Any, **named: Any) -> None:  # as s3fs raises it
        try:
            await refusing(*arguments, **named)
        except ClientError as error:
            raise translate_boto_error(error) from error

    monkeypatch.setattr(type(s3), "_call_s3", translated)
    with pytest.raises(TrainerError) as caught:
        fill(settings("s3://guarded/prefix"), encoders)
    assert "right to" in str(caught.value)
    assert encoders.pictures == []


def test_without_credentials_it_is_told_where_they_come_from(
    settings: Change, s3: Any, encoders: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3.clear_instance_cache()
    with pytest.raises(TrainerError) as caught:
        fill(settings("s3://guarded/prefix"), encoders)
    assert "environment" in str(caught.value)


def test_a_network_that_goes_away_in_the_middle_is_one_message(
    settings: Change, s3: Any, encoders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's attempts are its own; here they are few, so that the test is quick."""
    s3.mkdir("leaving")
    one = settings("s3://leaving/prefix")
    fill(one, encoders)
    s3.clear_instance_cache()
    monkeypatch.setattr(type(s3), "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    two = settings("s3://leaving/prefix", machine="two")
    batches = opened(two, encoders)
    with socket.socket() as closed:  # a port at which nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

    async def gone(*_: Any, **__: Any) -> None:
        from botocore.exceptions import EndpointConnectionError

        raise EndpointConnectionError(endpoint_url=f"http://somebody:{SECRET}@127.0.0.1:{port}")

    monkeypatch.setattr(type(s3), "_call_s3", gone)
    with pytest.raises(TrainerError) as caught:
        batches.numbered(0)
    assert not isinstance(caught.value, DataError)
    assert "Check the network" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_server_that_is_not_there_is_one_message(
    settings: Change, s3: Any, encoders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setattr(type(s3), "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.clear_instance_cache()
    with pytest.raises(TrainerError, match="cannot be read") as caught:
        fill(settings("s3://anything/prefix"), encoders)
    assert "AWS_ENDPOINT_URL" in str(caught.value)


def test_the_key_reaches_no_file_and_no_word(
    settings: Change, s3: Any, encoders: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s3.mkdir("quiet")
    with caplog.at_level(logging.DEBUG, "trainer"):
        fill(settings("s3://quiet/prefix"), encoders)
    assert SECRET not in caplog.text
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    written += [s3.cat_file(path) for path in s3.find("quiet")]
    assert written
    assert not [content for content in written if SECRET.encode() in content]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET  # it was there to be told
