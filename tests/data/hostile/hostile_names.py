"""Names that are no patterns, commands or formats, and entries of a folder that are no files."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case, probes, quarters, saved


def names() -> list[Case]:
    """Odd names, links, pipes, sockets, devices."""
    return [*_names(), *_entries(), *_links(), *_system_files()]


def _names() -> Iterator[Case]:
    content = saved(quarters(), "PNG")
    for name in (
        "new\nline.png",
        "tab\tand\x1b[31mred\x1b[0m.png",
        "carriage\rreturn.png",
        os.fsdecode(b"\xff\xfenot-utf-8\x80.png"),
        os.fsdecode("shift-jis-日本.png".encode("shift-jis")),
        "‮gnp.exe.png",  # written backwards
        "مرحبا بالعالم.png",
        "日本語の名前.png",
        "Привет.png",
        "👩‍👩‍👧‍👦🏳️‍🌈.png",
        "a" * 251 + ".png",
        "ä" * 125 + ".png",
        "[a-z]*?.png",
        "{0}%s%n{}.png",
        "-rf.png",
        "--config=x.png",
        "$(touch PWNED).png",
        "`touch PWNED`.png",
        ";touch PWNED;.png",
        "|touch PWNED.png",
        "<img src=x onerror=alert(1)>.png",
        "[link=file:etc]markup[bold].png",
        '"quoted".png',
        "'single'.png",
        "back\\slash.png",
        "%2e%2e%2fetc.png",
        "~.png",
        "~root.png",
        " leading and trailing .png",
        "trailing dot..png",
        "CON.png",
        "nul.PNG",
        "=1+1.png",
        "@SUM(A1).png",
        "https:x.png",
        "#fragment?query&a=b.png",
        "zero\u200bwidth\ufeff.png",
        "Case.png",
        "case.png",
        "cafe\u0301.png",
        "caf\u00e9.png",
        "deep/" + "/".join("d" * 40 for _ in range(20)) + "/deep.png",
        "fold\ner/[x]/{y}/$(z)/a.png",
        "10_blob creature/numbered.png",
        "folder.png/inside.png",
        "folder.txt/inside.png",
    ):
        yield Case(name=f"names/{name}", content=content, probes=probes())


def _entries() -> Iterator[Case]:
    for name, make in (
        ("pipe.png", os.mkfifo),
        ("pipe.txt", os.mkfifo),
        ("socket.png", _bind),
        ("pipe-without-suffix", os.mkfifo),
    ):
        yield Case(name=f"entries/{name}", content=make, fate="rejected", says="no regular file")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        for name, device in (("zero.png", os.makedev(1, 5)), ("terminal.jpg", os.makedev(5, 0))):
            yield Case(name=f"entries/{name}", content=_device(device), fate="rejected", says="no regular file")
    else:
        yield Case(name="entries/unreadable.png", content=_unreadable, fate="rejected", says="cannot be read")
    yield Case(name="entries/sparse.png", content=_sparse, fate="rejected", says="larger than")


def _bind(path: Path) -> None:
    """A socket; its path may be longer than the system takes, so it is bound from inside the folder."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)


def _device(number: int) -> Callable[[Path], object]:
    return lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, number)


def _unreadable(path: Path) -> None:
    path.write_bytes(saved(quarters(), "PNG"))
    path.chmod(0)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300_000_000)


def _link(target: str, *, hard: bool = False) -> Callable[[Path], object]:
    """Targets stand relative to the link; the folder beside the set is two steps up."""

    def make(path: Path) -> None:
        if hard:
            path.hardlink_to(path.parent / target)
        else:
            path.symlink_to(target)

    return make


def _links() -> Iterator[Case]:
    content = saved(quarters(), "PNG")
    yield Case(name="links/real.png", content=content, probes=probes())
    yield Case(name="links/inside.png", content=_link("real.png"), probes=probes())
    yield Case(name="links/chain.png", content=_link("inside.png"), probes=probes())
    yield Case(name="links/hard.png", content=_link("real.png", hard=True), probes=probes())
    for name, target, says in (
        ("out.png", "../../beside/secret.png", "out of the folder"),
        ("out-absolute.png", "/etc/hostname", "out of the folder"),
        ("out.txt", "../../beside/secret.txt", "out of the folder"),
        ("out-by-proc.png", "/proc/self/environ", "out of the folder"),
        ("device.png", "/dev/zero", "out of the folder"),
        ("nowhere.png", "not-there.png", "leads nowhere"),
        ("self.png", "self.png", "leads nowhere"),
        ("ping.png", "pong.png", "leads nowhere"),
        ("pong.png", "ping.png", "leads nowhere"),
        ("to-pipe.png", "../entries/pipe.png", "no regular file"),
        ("folder-out", "../../beside", "out of the folder"),
        ("root", "/", "out of the folder"),
    ):
        yield Case(name=f"links/{name}", content=_link(target), fate="rejected", says=says)
    for name, target in (("circle", "."), ("up", ".."), ("folder-inside", "../suffix")):
        yield Case(name=f"links/{name}", content=_link(target), fate="ignored", says="link to a folder")


def _system_files() -> Iterator[Case]:
    for name in (
        ".hidden.png",
        "...png",
        "..%2f..%2fetc.png",
        "._resource-fork.png",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
    ):
        yield Case(name=f"system/{name}", content=b"\0\5\x16\7", fate="ignored", says="hidden")
    for folder in (".thumbnails", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", ".ipynb_checkpoints"):
        yield Case(name=f"system/{folder}", content=_folder_with_picture, fate="ignored", says="hidden")
    yield Case(name="system/README.txt", content=b"read me", fate="ignored", says="not a picture")
    yield Case(name="system/LICENSE", content=b"do what you want", fate="ignored", says="not a picture")


def _folder_with_picture(path: Path) -> None:
    path.mkdir()
    (path / "a.png").write_bytes(saved(quarters(), "PNG"))
