"""Tar shards: every member accounted for, read where it lies, and nothing outside ever touched."""

import gzip
import io
import json
import os
import random
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.core.errors import DataError
from trainer.data.account import Account, Draft
from trainer.data.decoding import ImageLimits
from trainer.data.opened import OpenSources
from trainer.data.scanning import scan
from trainer.data.sources import archives, base
from trainer.data.sources.archives import members
from trainer.data.sources.shard_names import expand, find_shards
from trainer.data.sources.webdataset import WebDataset

LIMITS = ImageLimits()
Content = bytes | tarfile.TarInfo


def picture(shade: int = 0, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 100, 200)).save(stream, kind)
    return stream.getvalue()


def mask(size: tuple[int, int] = (16, 16)) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, 255).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, content: Sequence[tuple[str, Content]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, one in content:
            if isinstance(one, tarfile.TarInfo):
                one.name = name
                archive.addfile(one)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(one)
            archive.addfile(info, io.BytesIO(one))
    return path


def special(kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname, info.size = kind, target, size
    return info


def account_of(path: Path | str, **settings: object) -> Account:
    return scan([WebDataset.model_validate({"path": str(path), **settings})], LIMITS)


def captions_of(account: Account) -> dict[str, tuple[str, ...]]:
    return {example.name: example.captions for example in account.accepted}


def reasons(account: Account) -> dict[str, str]:
    return {remark.name: remark.reason for remark in (*account.rejected, *account.ignored)}


def names_in_lists(account: Account) -> list[str]:
    remarks = (*account.captions, *account.masks, *account.rejected, *account.ignored)
    return [example.name for example in account.accepted] + [remark.name for remark in remarks]


def test_a_shard_with_every_kind_of_caption(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "a.tar",
        [
            ("one.jpg", picture(1, kind="JPEG")),
            ("one.txt", b"first line\nsecond line"),
            ("two.PNG", picture(2)),
            ("two.json", json.dumps({"url": "x", "caption": ["a", "b"]}).encode()),
            ("sub/three.webp", picture(3, kind="WEBP")),
            ("sub/three.caption", "über".encode()),
            ("sub/three.json", b'{"caption": "not this one"}'),
            ("three.txt", b"of nobody"),
            ("four.png", picture(4)),
            ("four.json", b'{"width": 16}'),
            ("four.cls", b"7"),
        ],
    )
    account = account_of(shard)
    assert captions_of(account) == {
        "a.tar/one.jpg": ("first line", "second line"),
        "a.tar/two.PNG": ("a", "b"),
        "a.tar/sub/three.webp": ("über",),
        "a.tar/four.png": (),
    }
    assert reasons(account) == {
        "a.tar/sub/three.json": "a.tar/sub/three.caption is the caption",
        "a.tar/three.txt": "a caption without a picture",
        "a.tar/four.json": "holds no caption",
        "a.tar/four.cls": "not a picture",
    }
    assert account.found == 11
    assert {"a.tar/four.png": "has no caption"}.items() <= {r.name: r.reason for r in account.warnings}.items()


def test_bytes_are_those_that_were_stored(tmp_path: Path) -> None:
    stored = {f"{number:03}.png": picture(number) for number in range(20)}
    shard = write_shard(tmp_path / "a.tar", list(stored.items()))
    sources = [WebDataset(path=str(shard))]
    opened = OpenSources(sources)
    for example in scan(sources, LIMITS).accepted:
        assert opened.content(example, LIMITS) == stored[example.name.removeprefix("a.tar/")]
        assert opened.where(example) == example.name
        assert opened.picture(example, LIMITS).image.size == (16, 16)


def test_members_need_not_lie_side_by_side(tmp_path: Path) -> None:
    content: list[tuple[str, Content]] = [(f"{n}.png", picture(n)) for n in range(30)]
    content += [(f"{n}.txt", f"number {n}".encode()) for n in range(30)]
    random.Random(1).shuffle(content)
    account = account_of(write_shard(tmp_path / "a.tar", content))
    assert captions_of(account) == {f"a.tar/{n}.png": (f"number {n}",) for n in range(30)}
    assert account.found == 60


HOSTILE: list[tuple[str, Content, str]] = [
    ("/etc/absolute.png", picture(), "leads out"),
    ("../up.png", picture(), "leads out"),
    ("a/../../up.png", picture(), "leads out"),
    ("C:\\windows.png", picture(), "leads out"),
    ("..\\up.png", picture(), "leads out"),
    ("link.png", special(tarfile.SYMTYPE, "/etc/passwd"), "link"),
    ("hard.png", special(tarfile.LNKTYPE, "good.png"), "link"),
    ("device.png", special(tarfile.CHRTYPE), "device"),
    ("block.png", special(tarfile.BLKTYPE), "device"),
    ("pipe.png", special(tarfile.FIFOTYPE), "pipe"),
    ("folder.png", special(tarfile.DIRTYPE), "a folder"),
    ("odd.png", special(b"Z"), "not known"),
    ("good.png", picture(7), "two members"),
    ("nested.tar", b"x" * 100, "an archive inside"),
    ("nested.tar.gz", b"x" * 100, "an archive inside"),
    ("photo.heic", b"x", "not read"),
    (".hidden.png", picture(), "hidden"),
    ("__MACOSX/good.png", picture(), "hidden"),
    ("armed.pkl", b"cos\nsystem\n(S'touch /tmp/x'\ntR.", "not a picture"),
    ("armed.pyd", b"x", "not a picture"),
    ("README", b"read me", "not a picture"),
    ("text.png", b"I am a text", "no picture"),
    ("empty.png", b"", "empty"),
    ("latin.png", picture(11), "caption cannot be used"),
    ("latin.txt", "café".encode("latin-1"), "UTF-8"),
    ("broken.png", picture(12), "caption cannot be used"),
    ("broken.json", b"{", "no JSON"),
    ("deep.png", picture(13), "caption cannot be used"),
    ("deep.json", b"[" * 100_000, "no JSON"),
    ("number.png", picture(14), "caption cannot be used"),
    ("number.json", b'{"caption": 7}', "a number"),
    ("huge.png", picture(15), "caption cannot be used"),
    ("huge.txt", b"x" * ((1 << 20) + 1), "larger than"),
    ("good.mask.png", mask(), "a mask"),
    ("lonely.mask.png", mask(), "without a picture"),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_hostile_member_stands_in_exactly_one_list(tmp_path: Path, form: int) -> None:
    content = [("good.png", picture(1)), ("good.txt", b"good"), *((name, one) for name, one, _ in HOSTILE)]
    write_shard(tmp_path / "a.tar", content, form)
    account = account_of(tmp_path / "a.tar")
    assert captions_of(account) == {"a.tar/good.png": ("good",)}
    assert account.found == len(content) == len(names_in_lists(account))
    said = {(r.name, r.reason) for r in (*account.rejected, *account.ignored)}
    for name, _, reason in HOSTILE:
        assert any(n == f"a.tar/{name}" and reason.lower() in r.lower() for n, r in said), (name, reason)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_masks_go_with_their_pictures(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "a.tar",
        [("a.mask.png", mask()), ("a.png", picture(1)), ("b.png", picture(2)), ("c.mask.png", mask())],
    )
    account = account_of(shard, masks="files")
    assert {example.name: bool(example.mask_key) for example in account.accepted} == {
        "a.tar/a.png": True,
        "a.tar/b.png": False,
    }
    assert [remark.name for remark in account.masks] == ["a.tar/a.mask.png"]
    assert reasons(account) == {"a.tar/c.mask.png": "a mask without a picture"}
    example = account.accepted[0]
    opened = OpenSources([WebDataset(path=str(shard), masks="files")])
    got = opened.mask(example, opened.picture(example, LIMITS), LIMITS)
    assert got is not None
    assert got.getextrema() == (255, 255)


def test_two_pictures_of_one_name_share_the_caption(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "a.tar", [("a.png", picture(1)), ("a.jpg", picture(2, kind="JPEG")), ("a.txt", b"both")]
    )
    account = account_of(shard)
    assert captions_of(account) == {"a.tar/a.png": ("both",), "a.tar/a.jpg": ("both",)}
    assert any("same name" in remark.reason for remark in account.warnings)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, form: int) -> None:
    names = ["d/" * 60 + "x" * 120 + ".png", "猫" * 60 + ".png", "sp ace\n[*].png", "caf\udce9.png"]
    with tarfile.open(tmp_path / "a.tar", "w", format=form, errors="surrogateescape") as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            content = picture(number)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    account = account_of(tmp_path / "a.tar")
    assert len(account.accepted) == 4
    assert all(example.name.isprintable() for example in account.accepted)
    opened = OpenSources([WebDataset(path=str(tmp_path / "a.tar"))])
    for number, example in enumerate(account.accepted):
        assert opened.content(example, LIMITS) == picture(number)


def test_a_shard_cut_anywhere_loses_only_what_was_cut(tmp_path: Path) -> None:
    stored = [picture(n, kind="BMP") for n in range(4)]
    whole = write_shard(tmp_path / "a.tar", [(f"{n}.bmp", one) for n, one in enumerate(stored)]).read_bytes()
    size = len(stored[0])
    block = 512 + -(-size // 512) * 512  # bytes from header to header
    for length in range(0, 4 * block, 97):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        members_begun, into = divmod(length, block)
        complete = members_begun + (into >= 512 + size)
        if complete or into:
            account = account_of(tmp_path / "a.tar")
            assert len(account.accepted) == complete
            assert len(account.rejected) == (0 < into < 512 + size)


def test_any_damaged_header_is_named(tmp_path: Path) -> None:
    content: list[tuple[str, Content]] = [(f"{n}.png", picture(n)) for n in range(3)]
    whole = bytearray(write_shard(tmp_path / "a.tar", content).read_bytes())
    second = 512 + -(-len(picture(0)) // 512) * 512
    for place in range(0, 500, 7):
        spoilt = bytearray(whole)
        spoilt[second + place] ^= 0x55
        (tmp_path / "a.tar").write_bytes(spoilt)
        account = account_of(tmp_path / "a.tar")
        assert captions_of(account) == {"a.tar/0.png": ()}
        assert [remark.name for remark in account.rejected] == ["a.tar, its rest"]
        assert "damaged" in account.rejected[0].reason


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(b"a.png", b"77777777777\0"), "cut short"),
        (header(b"a.png", b"\x80" + b"\0" * 3 + b"\x7f" * 8), "cut short"),
        (header(b"a.png", b"\xff" * 12), "damaged"),
        (header(b"a.png", b"zzz"), "damaged"),
        (header(b"long", b"77777777777\0", b"L"), "damaged"),
        (header(b"pax", b"77777777777\0", b"x"), "damaged"),
        (header(b"pax", b"%011o\0" % 20, b"x") + b"9999999 path=x.png\n\n".ljust(512, b"\0"), "damaged"),
        (header(b"pax", b"%011o\0" % 12, b"x") + b"12 size=-99\n".ljust(512, b"\0"), "damaged"),
        (header(b"pax", b"%011o\0" % 16, b"g") + b"16 path=../a.b\n\n".ljust(512, b"\0"), "damaged"),
        (header(b"a.png", b"%011o\0" % 4, b"S") + b"x" * 512, "sparse"),
    ],
)
def test_lying_headers_end_at_once(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    account = account_of(tmp_path / "a.tar")
    assert len(account.rejected) == 1
    assert said in account.rejected[0].reason


def test_data_behind_the_end_mark_are_told(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", [("a.png", picture())])
    shard.write_bytes(shard.read_bytes() + b"x" * 20_000)
    account = account_of(shard)
    assert len(account.accepted) == 1
    assert any("after its end mark" in remark.reason for remark in account.warnings)


def test_compressed_shards_are_refused_with_advice(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "a.tar", [("a.png", picture())]).read_bytes()
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole))
    account = account_of(tmp_path / "a.tar")
    assert "gzip" in account.rejected[0].reason
    assert account.rejected[0].mend is not None
    assert "gunzip" in account.rejected[0].mend


def test_a_folder_a_pattern_and_a_range_mean_the_same(tmp_path: Path) -> None:
    for number in range(12):
        write_shard(tmp_path / "shards" / f"train-{number:03}.tar", [("a.png", picture(number))])
    (tmp_path / "shards" / "notes.txt").write_text("x")
    accounts = [
        account_of(tmp_path / "shards"),
        account_of(tmp_path / "shards" / "train-*.tar"),
        account_of(tmp_path / "shards" / "train-{000..011}.tar"),
        account_of(tmp_path / "shards" / "train-0{0,1}*.tar"),
    ]
    names = [[example.name for example in account.accepted] for account in accounts]
    assert names[0] == [f"train-{number:03}.tar/a.png" for number in range(12)]
    assert all(one == names[0] for one in names)
    assert len({example.key for example in accounts[0].accepted}) == 12


def test_a_missing_shard_of_a_range_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [("a.png", picture())])
    account = account_of(tmp_path / "{0..1}.tar")
    assert reasons(account) == {"1.tar": "There is no such file."}
    with pytest.raises(DataError, match="no such shards"):
        account_of(tmp_path / "{5..6}.tar")


def test_links_to_shards_outside_are_not_followed(tmp_path: Path) -> None:
    secret = write_shard(tmp_path / "secret" / "s.tar", [("a.png", picture())])
    write_shard(tmp_path / "shards" / "0.tar", [("a.png", picture(1))])
    (tmp_path / "shards" / "1.tar").symlink_to(secret)
    for pattern in ("shards", "shards/*.tar"):
        account = account_of(tmp_path / pattern)
        assert len(account.accepted) == 1
        assert "leads out" in reasons(account)["1.tar"]
    os.mkfifo(tmp_path / "shards" / "2.tar")
    assert "no regular file" in reasons(account_of(tmp_path / "shards"))["2.tar"]


@pytest.mark.parametrize(
    "pattern", ["pipe:curl http://x/y.tar", "https://x/y.tar", "s3://x/{0..9}.tar", "gs://x", "hf://x"]
)
def test_nothing_is_fetched_and_no_command_is_run(pattern: str) -> None:
    with pytest.raises(DataError, match="this machine"):
        WebDataset(path=pattern).open()


def test_braces() -> None:
    assert expand("a") == ("a",)
    assert expand("a-{8..11}.tar") == ("a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar")
    assert expand("a-{008..011}") == ("a-008", "a-009", "a-010", "a-011")
    assert expand("{2..0}") == ("2", "1", "0")
    assert expand("{a,b}{0..1}") == ("a0", "a1", "b0", "b1")
    assert expand("{x}{}") == ("{x}{}",)
    with pytest.raises(DataError, match="more than"):
        expand("{0..99999}{0..99999}")


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    write_shard(tmp_path / "a[0]{1,2}.tar", [("a.png", picture())])
    assert [shard.name for shard in find_shards(str(tmp_path / "a[0]{1,2}.tar"))] == ["a[0]{1,2}.tar"]


def test_shards_without_pictures(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", [("a.txt", b"x"), ("b.npy", b"x")])
    with pytest.raises(DataError, match=r"1 \.txt, 1 \.npy"):
        account_of(shard)


def test_too_many_members_stop_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 3)
    shard = write_shard(tmp_path / "a.tar", [(f"{n}.png", picture(n)) for n in range(5)])
    account = account_of(shard)
    assert len(account.accepted) == 3
    assert "more than 3 members" in account.rejected[0].reason


def test_reading_says_what_happened_to_the_shard(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", [("a.png", picture())])
    reader = WebDataset(path=str(shard)).open()
    (found,) = reader.list(Draft(0, "a"))
    with pytest.raises(DataError, match="larger than 10 bytes"):
        reader.read(found.locator, 10)
    os.truncate(shard, 520)
    with pytest.raises(DataError, match="shorter"):
        reader.read(found.locator, 1 << 20)
    shard.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        reader.read(found.locator, 1 << 20)
    with pytest.raises(DataError, match="gone"):
        reader.read(json.dumps(["../b.tar", 0, 1, "x"]), 10)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    stored = [picture(n) for n in range(40)]
    shard = write_shard(tmp_path / "a.tar", [(f"{n:02}.png", one) for n, one in enumerate(stored)])
    reader = WebDataset(path=str(shard)).open()
    found = list(reader.list(Draft(0, "a")))
    wrong: list[int] = []

    def read(seed: int) -> None:
        for number in random.Random(seed).choices(range(40), k=200):
            if reader.read(found[number].locator, 1 << 20) != stored[number]:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of the last change")
def test_the_stamp_is_of_the_shard_and_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_STILL_MOVING", -(10**15))
    shard = write_shard(tmp_path / "a.tar", [("a.bmp", picture(1, kind="BMP")), ("b.bmp", picture(2, kind="BMP"))])

    def stamps() -> list[str]:
        return [found.stamp for found in WebDataset(path=str(shard)).open().list(Draft(0, "a"))]

    before = stamps()
    assert before == stamps()
    assert len(set(before)) == 2
    times = shard.stat()
    write_shard(shard, [("a.bmp", picture(3, kind="BMP")), ("b.bmp", picture(2, kind="BMP"))])
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not set(before) & set(stamps())


part = st.sampled_from(("png", "txt", "json", "mask.png", "cls", "tar", "", "heic", "PNG", "x.png"))


def joined(folder: str, stem: str, end: str) -> str:
    return f"{folder}{stem}.{end}" if end else f"{folder}{stem}"


name = st.builds(
    joined,
    st.sampled_from(("", "d/", "./", "../", "/", "d/e/")),
    st.sampled_from(("a", "b", "c", ".h", "d e", "é")),
    part,
)
kind = st.sampled_from((b"", b"", b"", tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))


@given(st.lists(st.tuples(name, kind), min_size=1, max_size=12), st.sampled_from(("none", "files")))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_lists_sum_up_to_the_members(tmp_path: Path, content: list[tuple[str, bytes]], masks: str) -> None:
    made: list[tuple[str, Content]] = []
    for number, (one, what) in enumerate(content):
        data = (
            mask() if one.endswith("mask.png") else picture(number) if one.lower().endswith("png") else b'{"text": "x"}'
        )
        made.append((one, special(what, "x") if what else data))
    shard = write_shard(tmp_path / "a.tar", made)
    try:
        account = account_of(shard, masks=masks)
    except DataError as error:
        assert "hold no pictures" in error.what
    else:
        assert account.found == len(content)


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=150).filter(lambda n: "\0" not in n), st.binary(max_size=1500)),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_walk_agrees_with_tarfile(tmp_path: Path, content: list[tuple[str, bytes]]) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        shard = write_shard(tmp_path / "a.tar", content, form)
        with tarfile.open(shard) as archive:
            theirs = [(info.offset_data, info.size) for info in archive if info.isreg()]
        with shard.open("rb") as file:
            ours = list(members(file, shard.stat().st_size))
        assert [(one.start, one.size) for one in ours if one.kind in ("file", "refused")] == theirs
