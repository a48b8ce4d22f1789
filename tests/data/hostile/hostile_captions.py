"""Caption files in every encoding, and in none."""

import codecs
from collections.abc import Callable
from pathlib import Path

from hostile_case import Case, probes, quarters, saved

_REFUSED = "not in UTF-8"


def captions() -> list[Case]:
    """Pairs of a picture and its caption file."""
    return [case for name, content, lines, warns in _GOOD for case in _good(name, content, lines, warns)] + [
        case for name, content, says in _BAD for case in _bad(name, content, says)
    ]


def _good(name: str, content: bytes, lines: tuple[str, ...], warns: tuple[str, ...]) -> list[Case]:
    picture = saved(quarters(), "PNG")
    return [
        Case(name=f"captions/{name}.png", content=picture, probes=probes(), captions=lines, warns=warns),
        Case(name=f"captions/{name}.txt", content=content, fate="caption"),
    ]


def _bad(name: str, content: bytes | Callable[[Path], object], says: str) -> list[Case]:
    picture = saved(quarters(), "PNG")
    return [
        Case(name=f"captions/{name}.png", content=picture, fate="rejected", says="caption file cannot be used"),
        Case(name=f"captions/{name}.txt", content=content, fate="rejected", says=says),
    ]


_TEXT = "ein rotes Geländer, café, 日本, 👍🏽"
_GOOD: tuple[tuple[str, bytes, tuple[str, ...], tuple[str, ...]], ...] = (
    ("utf-8", _TEXT.encode(), (_TEXT,), ()),
    ("utf-8-mark", codecs.BOM_UTF8 + _TEXT.encode(), (_TEXT,), ()),
    ("utf-16-little", codecs.BOM_UTF16_LE + _TEXT.encode("utf-16-le"), (_TEXT,), ()),
    ("utf-16-big", codecs.BOM_UTF16_BE + _TEXT.encode("utf-16-be"), (_TEXT,), ()),
    ("utf-32-little", codecs.BOM_UTF32_LE + _TEXT.encode("utf-32-le"), (_TEXT,), ()),
    ("utf-32-big", codecs.BOM_UTF32_BE + _TEXT.encode("utf-32-be"), (_TEXT,), ()),
    ("unix", b"one line\n", ("one line",), ()),
    ("windows", b"a\r\nb\r\n\r\n", ("a", "b"), ("2 lines",)),
    ("old-mac", b"a\rb\r", ("a", "b"), ("2 lines",)),
    ("several", "first\n\n  second \n\u2028third".encode(), ("first", "second", "third"), ("3 lines",)),
    ("tabs", b"a\tb\x0bc", ("a b c",), ()),
    ("spaces-around", "\u00a0\u3000 a  b \t\n".encode(), ("a  b",), ()),
    ("empty", b"", (), ("caption is empty",)),
    ("only-a-mark", codecs.BOM_UTF8, (), ("caption is empty",)),
    ("only-spaces", b" \t\r\n \n", (), ("caption is empty",)),
    ("control", b"with \x00nothing\x07 in between", ("with nothing in between",), ("2 control",)),
    ("terminal", b"\x1b[31mred\x1b[0m \x1b]0;title\x07 flag", ("[31mred[0m ]0;title flag",), ("4 control",)),
    ("backwards", "safe \u202egnp.exe\u202c \u2066x\u2069".encode(), ("safe gnp.exe x",), ("4 control",)),
    ("marks-in-between", "a\ufeffb".encode(), ("ab",), ("1 control",)),
    ("joined", "👩\u200d👩\u200d👧 می\u200cخواهم".encode(), ("👩\u200d👩\u200d👧 می\u200cخواهم",), ()),
    ("combining", "Z̸a̷l̶g̵o".encode(), ("Z̸a̷l̶g̵o",), ()),
    ("lost-letters", "caf\ufffd".encode(), ("caf\ufffd",), ("letters were lost",)),
    ("page", b"<script>alert(1)</script><img src=x onerror=alert(1)>",
     ("<script>alert(1)</script><img src=x onerror=alert(1)>",), ()),
    ("braces", b"{a|b} {0} %s ${HOME} {{x}} \\n __import__('os')",
     ("{a|b} {0} %s ${HOME} {{x}} \\n __import__('os')",), ()),
    ("markup", b"[bold]x[/bold] [link=file:///etc/passwd]y[/link]",
     ("[bold]x[/bold] [link=file:///etc/passwd]y[/link]",), ()),
    ("option", b"--rm -rf / ; touch PWNED", ("--rm -rf / ; touch PWNED",), ()),
    ("formula", b"=cmd|' /C calc'!A0", ("=cmd|' /C calc'!A0",), ()),
    ("json", b'{"caption": "a"}', ('{"caption": "a"}',), ()),
    ("long", b"tag, " * 20_000, ((b"tag, " * 20_000).decode().strip(),), ()),
)  # fmt: skip
_BAD: tuple[tuple[str, bytes | Callable[[Path], object], str], ...] = (
    ("latin-1", "ein Geländer, café".encode("latin-1"), _REFUSED),
    ("windows-1251", "красный мяч".encode("cp1251"), _REFUSED),
    ("windows-1252", "the “quoted” word".encode("cp1252"), _REFUSED),
    ("shift-jis", "日本語のキャプション".encode("shift-jis"), _REFUSED),
    ("gbk", "中文标题".encode("gbk"), _REFUSED),
    ("koi8", "красный мяч".encode("koi8-r"), _REFUSED),
    ("utf-16-without-mark", "plain words".encode("utf-16-le"), _REFUSED),
    ("utf-16-big-without-mark", "plain words".encode("utf-16-be"), _REFUSED),
    ("cyrillic-utf-16-without-mark", "Привет мир".encode("utf-16-le"), _REFUSED),
    ("utf-32-without-mark", "plain words".encode("utf-32-le"), _REFUSED),
    ("utf-16-cut", codecs.BOM_UTF16_LE + "plain".encode("utf-16-le")[:-1], _REFUSED),
    ("utf-8-cut", "日本".encode()[:-1], _REFUSED),
    ("overlong", b"a\xc0\xafb", _REFUSED),
    ("surrogates", b"a\xed\xa0\x80b", _REFUSED),
    ("cesu-8", b"a \xed\xa0\xbd\xed\xb8\x80 b", _REFUSED),
    ("a-picture", saved(quarters(), "PNG"), _REFUSED),
    ("zeros", bytes(300), _REFUSED),
    ("controls", bytes(range(1, 9)) * 20, _REFUSED),
    ("huge", b"word " * 400_000, "larger than"),
)


def lonely() -> list[Case]:
    """Captions that no picture claims, pictures that no caption names, and captions that are no files."""
    picture = saved(quarters(), "PNG")
    return [
        Case(name="pairs/nobody.txt", content=b"of nobody", fate="ignored", says="without a picture",
             warns=("without a picture",)),
        Case(name="pairs/Name.png", content=picture, probes=probes(), captions=()),
        Case(name="pairs/name.txt", content=b"of Name?", fate="ignored", says="without a picture",
             warns=("differs only in",)),
        Case(name="pairs/two.png", content=picture, probes=probes(), captions=("from txt",)),
        Case(name="pairs/two.txt", content=b"from txt", fate="caption"),
        Case(name="pairs/two.caption", content=b"from caption", fate="ignored", says="is the caption",
             warns=("second",)),
        Case(name="pairs/twin.png", content=picture, probes=probes(), captions=("of both",), warns=("same stem",)),
        Case(name="pairs/twin.jpg", content=saved(quarters(), "JPEG"), captions=("of both",)),
        Case(name="pairs/twin.txt", content=b"of both", fate="caption"),
        Case(name="pairs/two.dots.png", content=picture, probes=probes(), captions=("dots",)),
        Case(name="pairs/two.dots.txt", content=b"dots", fate="caption"),
        Case(name="pairs/UPPER.PNG", content=picture, probes=probes(), captions=("upper",)),
        Case(name="pairs/UPPER.TXT", content=b"upper", fate="caption"),
        Case(name="pairs/linked.png", content=picture, probes=probes(), captions=("from txt",)),
        Case(name="pairs/linked.txt", content=lambda path: path.symlink_to("two.txt"), fate="caption"),
        Case(name="pairs/a_mask.png", content=picture, probes=probes(), warns=("looks like the mask",)),
        Case(name="pairs/a.png", content=picture, probes=probes()),
        Case(name="pairs/gas_mask.png", content=picture, probes=probes()),
    ]  # fmt: skip
