"""The page: whole by itself, without script, and nothing that a name or a caption says can act in it."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.health import page
from trainer.data.health.examining import Report
from trainer.data.health.page import page_of, write_page
from trainer.data.opened import OpenSources

Show = Callable[..., Path]
Scene = Callable[..., Image.Image]
Examine = Callable[..., Report]

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &amp;",
    "]]> --> <!--",
    "\u202etxt.exe\u2066",
)


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "path", "rect", "image", "use"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def rendered(report: Report, title: str = "a folder") -> Elements:
    text = page_of(report, OpenSources(report.settings.parts), title)
    harmless(text)
    return Elements(text)


def harmless(text: str) -> None:
    """No script, no handler, no link out, no request: by the elements that a browser would see."""
    found = Elements(text)
    assert not found.open
    names = {tag for tag, _ in found.elements}
    assert not names & {"script", "iframe", "object", "embed", "form", "link", "base", "img", "audio", "video", "input"}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "action"):
            value = attributes.get(name)
            if value is not None:
                # A part of the page itself, or a picture that we made.
                assert value.startswith("#") or (tag == "image" and value.startswith("data:image/webp;base64,"))
        style = attributes.get("style") or ""
        assert re.fullmatch(r"(width|--w|--v):[\d.]+(px|%)?|position:absolute|", style)
    assert "url(" not in text
    assert "@import" not in text


@pytest.fixture
def hostile(tmp_path: Path, show: Show, scene: Scene) -> Path:
    for number, words in enumerate(EVIL):
        name = words.replace("/", "!")
        show(f"evil/{name}.png", scene(number), f"{words}, zwx")
        show(f"evil/{name} again.png", scene(number), f"{words} {words} {'word ' * 90}")
    (tmp_path / "evil" / "<script>alert(2)<!script>.png").write_bytes(b"no picture")
    (tmp_path / "evil" / "<i>.pdf").write_bytes(b"passed over")
    return tmp_path / "evil"


def test_nothing_that_names_and_captions_say_can_act(hostile: Path, report_of: Examine) -> None:
    report = report_of({"path": hostile}, captions={"trigger": "<zwx>", "suffix": "<b>"})
    found = rendered(report, title='<script>alert("title")</script>')
    assert {finding.kind for finding in report.findings} >= {"token-overflow", "contradictory-copies", "refused-files"}
    # All of it stands there as text, for people to read.
    assert '<script>alert("title")</script>' in found.text
    for words in EVIL[:9]:
        assert words in found.text
    labels = {attributes["aria-label"] for attributes in found.of("svg") if "aria-label" in attributes}
    assert any('"><img src=x onerror=alert(1)>.png' in str(label) for label in labels)


def test_signs_that_turn_the_direction_of_writing_are_spelled_out(hostile: Path, report_of: Examine) -> None:
    text = page_of(report := report_of({"path": hostile}), OpenSources(report.settings.parts), "\u202etitle\x1b[31m")
    assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069\x1b]", text)
    assert "\\u202etitle\\x1b[31m" in text


def test_the_policy_forbids_everything_but_our_pictures_and_styles(
    show: Show, scene: Scene, report_of: Examine
) -> None:
    found = rendered(report_of({"path": show("a/1.png", scene(1)).parent}))
    (policy,) = (one["content"] for one in found.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    for rule in ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"):
        assert rule in policy
    assert "script" not in policy


def test_pictures_are_made_anew_and_stand_there_once(show: Show, scene: Scene, report_of: Examine) -> None:
    path = show("a/1.png", scene(1, (900, 300)), pnginfo=_hidden())
    show("a/2.png", scene(1, (900, 300)))
    found = rendered(report_of({"path": path.parent}, buckets={"max_aspect": 1}))
    images = found.of("image")
    assert len(images) == 2
    for image in images:
        content = base64.b64decode(str(image["href"]).partition(",")[2])
        assert b"secret" not in content
        with Image.open(io.BytesIO(content)) as small:
            assert small.size == (160, 53)
    shown = [attributes["href"] for attributes in found.of("use")]
    assert set(shown) == {"#p0", "#p1"}
    assert len(shown) >= 6  # as copies, as cropped ones, and in the gallery
    (first, *_) = found.of("rect")
    assert float(str(first["width"])) == pytest.approx(160 / 3, rel=0.02)
    assert float(str(first["x"])) == pytest.approx(160 / 3, rel=0.02)


def _hidden() -> object:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("note", "secret place")
    return info


def test_every_place_of_several_crops_is_drawn(show: Show, scene: Scene, report_of: Examine) -> None:
    path = show("a/1.png", scene(1, (900, 300)))
    report = report_of({"path": path.parent}, buckets={"max_aspect": 1}, crops={"places": 3}, flip=True)
    found = rendered(report)
    lefts = sorted({float(str(rectangle["x"])) for rectangle in found.of("rect")})
    assert len(lefts) == 3
    assert lefts[0] == 0


def test_what_a_mask_leaves_out_is_red(show: Show, scene: Scene, report_of: Examine) -> None:
    path = show("a/1.png", Image.new("RGB", (96, 96), "white"))
    mask = Image.new("L", (96, 96), 0)
    mask.paste(255, (0, 0, 48, 96))
    mask.save(path.parent / "1-masklabel.png")
    found = rendered(report_of({"path": path.parent, "masks": "files"}))
    (image,) = found.of("image")
    with Image.open(io.BytesIO(base64.b64decode(str(image["href"]).partition(",")[2]))) as small:
        kept, left_out = small.convert("RGB").getpixel((20, 48)), small.convert("RGB").getpixel((76, 48))
    assert isinstance(kept, tuple)
    assert isinstance(left_out, tuple)
    assert min(kept) > 240
    assert left_out[0] - left_out[1] > 60


def test_lost_words_are_struck_out(show: Show, scene: Scene, report_of: Examine) -> None:
    path = show("a/1.png", scene(1), f"zwx, {'word ' * 80}Ending")
    text = page_of(report := report_of({"path": path.parent}), OpenSources(report.settings.parts), "a")
    assert "<del>Ending</del>" in text
    assert text.count("Ending") >= 1
    assert "7 tokens too many" in text


def test_the_page_stays_small_however_much_there_is(
    tmp_path: Path, show: Show, scene: Scene, report_of: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        show(f"a/{number}.png", scene(number), f"zwx, {number}, {'word ' * 90}")
        show(f"a/{number} again.png", scene(number), f"zwx, {number}")
    report = report_of({"path": tmp_path / "a"})
    whole = rendered(report)
    assert len(whole.of("image")) == 24
    for limit, value in (("_BYTES", 20_000), ("_GALLERY", 4), ("_GROUPS", 3), ("_NAMES", 2), ("_PICTURES", 2)):
        monkeypatch.setattr(page, limit, value)
    small = rendered(report)
    assert 0 < sum(len(str(image["href"])) for image in small.of("image")) <= 20_000
    assert "no thumbnail" in small.text
    assert "more, which the JSON report names" in small.text


def test_a_picture_that_is_gone_has_no_thumbnail(show: Show, scene: Scene, report_of: Examine) -> None:
    path = show("a/1.png", scene(1))
    show("a/2.png", scene(2))
    report = report_of({"path": path.parent})
    path.unlink()
    found = rendered(report)
    assert len(found.of("image")) == 1
    assert "no thumbnail" in found.text


def test_a_set_of_nothing_can_be_shown(show: Show, tmp_path: Path, report_of: Examine) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_bytes(b"no picture")
    report = report_of({"path": tmp_path / "a"})
    assert report.refused
    write_page(tmp_path / "page.html", report, OpenSources(report.settings.parts), "a")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    harmless(text)
    assert "Training would be refused" in text
