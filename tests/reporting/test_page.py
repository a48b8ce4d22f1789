"""The page of a run: whole by itself, and nothing that a run folder says can act in it."""

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.core.errors import CheckpointError
from trainer.core.pages import script_source
from trainer.core.progress import Silence
from trainer.reporting import page, timeline
from trainer.reporting.page import write_report
from trainer.reporting.record import RunRecord

MakeRun = Callable[..., Path]

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &amp;",
    "]]> --> <!--",
)
HERE = Path(page.__file__).parent
VOID = {"meta", "img", "input", "br"}


class Elements(HTMLParser):
    """Every element with its attributes, the text, and the content of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data
        elif self.open and self.open[-1] != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def data(self, name: str) -> Any:
        return json.loads(next(content for attributes, content in self.scripts if attributes.get("id") == name))


def written(root: Path) -> str:
    path = root / "report.html"
    write_report(RunRecord.read(root), path, Silence())
    return path.read_text(encoding="utf-8")


def rendered(root: Path) -> Elements:
    text = written(root)
    harmless(text)
    return Elements(text)


def harmless(text: str) -> None:
    """No handler, no link out, no request, and no script but our own two: by the elements that a browser would see."""
    found = Elements(text)
    assert not found.open
    names = {tag for tag, _ in found.elements}
    assert not names & {"iframe", "object", "embed", "form", "link", "base", "audio", "video", "svg", "image"}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert "style" not in attributes
        assert "srcset" not in attributes
        for name in ("href", "src", "xlink:href", "action", "formaction"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith("#") or (tag == "img" and value.startswith("data:image/webp;base64,"))
    acting = [content for attributes, content in found.scripts if attributes.get("type") != "application/json"]
    ours = [(HERE / name).read_text(encoding="utf-8") for name in ("uplot/uplot.min.js", "page.js")]
    assert acting == ours
    (policy,) = (one["content"] for one in found.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [" ".join(f"'{script_source(text)}'" for text in ours)]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def bytes_of(uri: str | None) -> bytes:
    return base64.b64decode(str(uri).partition(",")[2])


def test_a_finished_run_is_told(run_folder: MakeRun) -> None:
    found = rendered(run_folder())
    for words in ("This run is finished.", "thing, red ball", "trainer evaluate", "AUTOMATIC1111", "<lora:tried:1>"):
        assert words in found.text
    assert "lowest held-out loss, step 30" in found.text
    curves = found.data("curves")
    assert [drawing["name"] for drawing in curves["drawings"]] == ["loss", "bands", "rate", "memory", "seconds"]
    loss = curves["drawings"][0]
    assert loss["steps"] == list(range(1, 41))
    assert [line["label"] for line in loss["lines"]] == ["training loss", "held-out loss"]
    assert loss["columns"][1][9] == pytest.approx(0.49)
    assert loss["columns"][1][0] is None
    assert curves["drawings"][1]["columns"] == [[0.39, 0.38, 0.37], [0.59, 0.58, 0.57]]
    assert found.data("steps") == [20, 40]
    film = found.data("film-0")
    assert film["steps"] == [20, 40]
    with Image.open(io.BytesIO(bytes_of(film["pictures"][1]))) as picture:
        assert picture.format == "WEBP"
        assert picture.convert("RGB").getpixel((3, 3)) == (40, 0, 128)


def test_nothing_that_a_run_says_can_act(run_folder: MakeRun, evaluation: dict[str, Any], pictures: Path) -> None:
    for number, words in enumerate(EVIL):
        name = words.replace("/", "!")
        Image.new("RGB", (16, 16), (number, 0, 0)).save(pictures / f"{name}.png")
        Image.new("RGB", (16, 16), (number, 0, 0)).save(pictures / f"{name} again.png")
        (pictures / f"{name}.txt").write_text(words, encoding="utf-8")
    own = evaluation["runs"][0]
    own["training"] = [own["training"][0] | {"name": words, "caption": words} for words in EVIL]
    own["findings"] = [{"what": words, "mend": words, "names": [words], "level": "error"} for words in EVIL]
    own["recommendation"] |= {"why": list(EVIL), "sure": EVIL[0], "file": EVIL[1]}
    evaluation["features"]["name"] = EVIL[4]
    root = run_folder(
        previews={"prompts": list(EVIL), "negative": EVIL[0]},
        prompts=len(EVIL),
        data={
            "sources": [{"kind": "folder", "path": str(pictures)}],
            "captions": {"trigger": EVIL[1], "suffix": EVIL[4]},
            "cache": {"folder": str(pictures.parent / "cache")},
        },
    )
    (root / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (root / "environment.json").write_text(json.dumps({EVIL[0]: {EVIL[1]: EVIL[4]}}), encoding="utf-8")
    (root / "grids").mkdir()
    Image.new("RGB", (16, 16)).save(root / "grids" / f"{EVIL[1]}.png")
    with (root / "events.jsonl").open("a", encoding="utf-8") as file:
        for words in EVIL:
            file.write(json.dumps({"kind": "warning", "step": 3, "message": words}) + "\n")
        file.write(
            json.dumps({"kind": "held_out", "step": 3, f"loss_{EVIL[4]}": 1.0, "bands": [EVIL[4], 0.5], "loss": 2.0})
            + "\n"
        )
        file.write(json.dumps({"kind": "step", "step": 1, "loss": 0.1, f"rate_{EVIL[0]}": 1.0}) + "\n")
    found = rendered(root)
    for words in EVIL:
        assert words in found.text
    assert "alert" not in json.dumps(found.data("curves"))


def test_signs_that_turn_the_direction_of_writing_are_spelled_out(run_folder: MakeRun) -> None:
    text = written(run_folder(previews={"prompts": ["\u202etxt.exe\u2066 \x1b[31m"]}, prompts=1))
    harmless(text)
    assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069\x1b]", text)
    assert "\\u202etxt.exe" in text


def test_scores_and_advice_are_shown(run_folder: MakeRun, evaluation: dict[str, Any]) -> None:
    root = run_folder()
    (root / "evaluation").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (24, 24), colour).save(root / "evaluation" / f"{name}.png")
    (root / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    found = rendered(root)
    for words in (
        "Use step 20 at strength 0.8 (fairly sure).", "It is nearest.", "It was trained for too long.", "Use step 20.",
        "built-in shapes", "0.3 → 0.2", "33 %", "bad-captions", "step 40 at 1.0: 20 %", "<lora:tried:0.8>",
    ):  # fmt: skip
        assert words in found.text
    curves = found.data("curves")
    assert curves["mark"] == 20
    fixed = next(drawing for drawing in curves["drawings"] if drawing["name"] == "fixed")
    assert (fixed["steps"], fixed["columns"][0]) == ([0, 20, 40], [0.21, 0.19, 0.19])
    assert [bytes_of(one["src"])[:4] for one in found.of("img") if one["alt"] == "sample"] == [b"RIFF"]


def test_a_picture_outside_of_the_run_is_not_taken_in(run_folder: MakeRun, evaluation: dict[str, Any]) -> None:
    root = run_folder(drawn=())
    Image.new("RGB", (24, 24), "red").save(root.parent / "outside.png")
    (root / "evaluation").mkdir()
    (root / "evaluation" / "a.png").symlink_to(root.parent / "outside.png")
    evaluation["runs"][0]["findings"][0]["pictures"] = ["../outside.png", str(root.parent / "outside.png")]
    (root / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    assert rendered(root).of("img") == []


@pytest.mark.parametrize("content", ["{", "[1]", '{"runs": []}', '{"runs": [{"candidates": 3}]}', '{"format": 9}'])
def test_an_evaluation_that_cannot_be_read_is_said(run_folder: MakeRun, content: str) -> None:
    root = run_folder()
    (root / "evaluation.json").write_text(content, encoding="utf-8")
    assert "trainer evaluate" in rendered(root).text


def test_a_run_that_goes_on_or_was_stopped_is_told(run_folder: MakeRun) -> None:
    root = run_folder(steps=13, done=False, drawn=(0,))
    with (root / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "step": 14, "loss": null, "rate": 1e-4}\n{"kind": "step", "st')
    found = rendered(root)
    assert "not finished" in found.text
    assert "14 of 40" in found.text
    assert "There is no result yet" in found.text
    assert found.data("curves")["drawings"][0]["columns"][0][13] is None


def test_a_folder_with_little_in_it_is_told(run_folder: MakeRun) -> None:
    root = run_folder(done=False, drawn=())
    for name in ("environment.json", "data.json", "events.jsonl"):
        (root / name).unlink()
    found = rendered(root)
    assert "No step was told of." in found.text
    (root / "recipe.yaml").write_text("name: old\nunknown_key_of_an_older_version: 3\n", encoding="utf-8")
    assert "recipe.yaml cannot be read" in rendered(root).text
    (root / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match="no run"):
        RunRecord.read(root)


def test_torn_pictures_are_left_out(run_folder: MakeRun) -> None:
    root = run_folder()
    torn = root / "previews" / "step-000020" / "00.png"
    torn.write_bytes(torn.read_bytes()[:40])
    found = rendered(root)
    assert found.data("film-0")["steps"] == [40]
    assert found.data("film-1")["steps"] == [20, 40]


def test_what_a_picture_file_says_besides_does_not_come_into_the_page(run_folder: MakeRun) -> None:
    root = run_folder()
    info = PngInfo()
    info.add_text("parameters", "a secret place")
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    path = root / "previews" / "step-000040" / "00.png"
    Image.new("RGB", (16, 16)).save(path, pnginfo=info, exif=exif)
    found = rendered(root)
    contents = [bytes_of(uri) for name in ("film-0", "film-1") for uri in found.data(name)["pictures"]]
    contents += [bytes_of(one["src"]) for one in found.of("img")]
    assert contents
    assert not [content for content in contents if b"secret" in content or b"EXIF" in content]


def test_paths_and_secrets_stay_out(run_folder: MakeRun, tmp_path: Path) -> None:
    root = run_folder()
    environment = {"files": {str(tmp_path / "x"): str(tmp_path / "y")}, "note": "hf_aaaaaaaaaaaaaaaaaaaaaaaa"}
    (root / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    text = written(root)
    assert str(tmp_path) not in text
    assert "hf_aaaa" not in text


def test_the_page_stays_small_however_long_the_run(run_folder: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "_LETTERS", 400_000)
    monkeypatch.setattr(timeline.timeline_of, "__defaults__", (400_000,))
    monkeypatch.setattr(timeline, "_ENOUGH", 8_000)
    root = run_folder(steps=5000, drawn=tuple(range(0, 5000, 250)), prompts=5, side=96, noise=True)
    found = rendered(root)
    steps = found.data("steps")
    assert 2 <= len(steps) < 19
    assert (steps[0], steps[-1]) == (250, 4750)
    assert f"{len(steps)} of 19 previews are shown" in found.text
    uris = [uri for place in range(5) for uri in found.data(f"film-{place}")["pictures"]]
    assert sum(len(uri) for uri in uris) < 400_000
    assert len(found.data("curves")["drawings"][0]["steps"]) <= 1510
    assert "the mean of 4 steps" in found.text


def test_what_differs_from_the_defaults_is_marked(run_folder: MakeRun) -> None:
    from trainer.reporting.settings_shown import settings_shown

    record = RunRecord.read(run_folder(adapter={"kind": "lokr", "factor": 4}, rate={"kind": "cosine", "warmup": 3}))
    assert record.recipe is not None
    rows = {row.key: row for row in settings_shown(record.recipe)}
    assert (rows["adapter.kind"].value, rows["adapter.kind"].default) == ("lokr", "lora")
    assert rows["adapter.factor"].differs
    assert rows["rate.kind"].differs
    assert not rows["batch"].differs
    assert not rows["optimizer.kind"].differs
    assert rows["name"].default == "must be said"

    def flatten(content: dict[str, Any], under: str) -> Iterator[str]:
        for key, value in content.items():
            if isinstance(value, dict) and value:
                yield from flatten(value, f"{under}{key}.")
            else:
                yield f"{under}{key}"

    keys = set(flatten(record.recipe.model_dump(mode="json"), ""))
    assert keys == set(rows), keys ^ set(rows)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_page_that_cannot_be_written_leaves_the_old_one(run_folder: MakeRun) -> None:
    root = run_folder()
    written(root)
    before = (root / "report.html").read_bytes()
    root.chmod(0o500)
    with pytest.raises(OSError, match="denied"):
        write_report(RunRecord.read(root), root / "report.html", Silence())
    root.chmod(0o700)
    assert (root / "report.html").read_bytes() == before
