"""What is published is what was listed, and nothing private; against a model hub on this machine."""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.cli.main import run
from trainer.core.errors import CheckpointError, RecipeError, TrainerError
from trainer.reporting.card import fenced, plain
from trainer.reporting.record import RunRecord
from trainer.reporting.uploading import Publication, publication_of, publish

MakeRun = Callable[..., Path]
PRIVATE = ("alice", "secret-project", "ordinary caption")
TOKEN = "hf_" + "t" * 30


@dataclass
class Hub:
    """What the hub has been told."""

    address: str = ""
    visibility: bool | None = None  # None: there is no repository yet
    refuses: bool = False
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    made: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    asked: list[str] = field(default_factory=list[str])
    tokens: set[str] = field(default_factory=set[str])
    stored: dict[str, bytes] = field(default_factory=dict[str, bytes])


class HubServer(ThreadingHTTPServer):
    """Answers for a hub."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.hub = hub
        hub.address = f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    """The few answers that an upload needs."""

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, HubServer)
        return self.server.hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._note()
        if self.hub.visibility is None:
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            self._answer({"id": "me/tried", "private": self.hub.visibility, "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        self.hub.stored[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        self._note()
        body = self._body()
        answers = {
            "create": self._create, "validate-yaml": self._look, "main": self._take, "batch": self._places,
        }  # fmt: skip
        if self.hub.refuses:
            self._answer({"error": "You may not write here"}, 403)
        else:
            answers[self.path.rpartition("/")[2]](body)

    def _create(self, body: bytes) -> None:
        self.hub.made.append(json.loads(body))
        said = self.hub.made[-1]  # by older versions of the library, or by newer ones
        self.hub.visibility = said.get("private") is True or said.get("visibility") == "private"
        self._answer({"url": f"{self.hub.address}/me/tried", "name": "me/tried"})

    def _look(self, body: bytes) -> None:
        assert json.loads(body)["content"].startswith("---")
        self._answer({"errors": [], "warnings": []})

    def _take(self, body: bytes) -> None:
        """Which way each file goes, before it is sent; or the commit itself."""
        if "/preupload/" in self.path:
            self._answer({"files": [_mode(file["path"]) for file in json.loads(body)["files"]]})
            return
        for line in body.decode("utf-8").splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.stored[value["oid"]]
        url = f"{self.hub.address}/me/tried/commit/{'a' * 40}"
        self._answer({"commitUrl": url, "commitOid": "a" * 40, "hookOutput": ""})

    def _places(self, body: bytes) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.address}/store/{one['oid']}", "header": {}}}}
            for one in json.loads(body)["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _note(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        self.hub.tokens.add(self.headers.get("authorization", ""))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, content: object, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        body = json.dumps(content).encode("utf-8")
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), "content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _mode(path: str) -> dict[str, object]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, to which huggingface_hub speaks; nobody is logged in."""
    from huggingface_hub import constants

    for name, value in (
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_TOKEN_PATH", str(tmp_path / "t")),
    ):
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    one = Hub()
    server = HubServer(one)
    monkeypatch.setenv("HF_ENDPOINT", one.address)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield one
    server.shutdown()
    server.server_close()
    thread.join()


def wanted(root: Path, *, private: bool = True, license_id: str = "") -> Publication:
    return publication_of(RunRecord.read(root), "me/tried", private=private, license_id=license_id)


@pytest.fixture
def logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def test_a_new_repository_gets_exactly_what_was_listed(run_folder: MakeRun, logged_in: Hub) -> None:
    root = run_folder()
    publication = wanted(root, license_id="openrail++")
    address = publish(publication)
    assert "me/tried" in address
    assert set(logged_in.files) == {one.name for one in publication.uploads}
    assert set(logged_in.files) == {"README.md", "tried.safetensors", "pictures/00.png", "pictures/01.png"}
    assert logged_in.files["tried.safetensors"] == (root / "tried.safetensors").read_bytes()
    assert logged_in.files["README.md"].decode("utf-8") == publication.card
    assert logged_in.visibility is True
    assert logged_in.tokens == {f"Bearer {TOKEN}"}


def test_a_public_repository_is_not_taken_for_a_private_one(run_folder: MakeRun, logged_in: Hub) -> None:
    logged_in.visibility = False
    with pytest.raises(RecipeError, match="everybody can see it"):
        publish(wanted(run_folder()))
    assert logged_in.files == {}
    publish(wanted(run_folder(name="again"), private=False))
    assert "README.md" in logged_in.files
    assert logged_in.made == []


def test_a_hub_that_refuses_is_said_without_the_token(run_folder: MakeRun, logged_in: Hub) -> None:
    logged_in.refuses = True
    with pytest.raises(TrainerError, match="did not take it") as caught:
        publish(wanted(run_folder()))
    assert TOKEN not in str(caught.value)
    assert logged_in.files == {}


def test_who_is_not_logged_in_is_told(run_folder: MakeRun, hub: Hub) -> None:
    with pytest.raises(TrainerError, match="Nobody is logged in"):
        publish(wanted(run_folder()))
    assert hub.asked == []


def test_the_card_has_its_data(run_folder: MakeRun) -> None:
    root = run_folder(model={"kind": "sd1", "weights": "stable-diffusion-v1-5/stable-diffusion-v1-5"})
    card = wanted(root, license_id="creativeml-openrail-m").card
    _, front, text = card.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == "creativeml-openrail-m"
    assert data["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert data["instance_prompt"] == "thing"
    assert data["widget"][1] == {"text": "thing, blue ball", "output": {"url": "pictures/01.png"}}
    for words in ("# tried", "![thing, red ball](pictures/00.png)", "<lora:tried:1>", "| adapter\\.rank | 4 |"):
        assert words in text


def test_nothing_private_is_published(run_folder: MakeRun, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alice" / "secret-project"
    folder.mkdir(parents=True)
    root = run_folder(
        model={"kind": "sd1", "weights": str(folder / "base.safetensors"), "vae": str(folder / "vae.safetensors")},
        adapter={"kind": "lora", "rank": 4, "start": "alice/secret-project/before.safetensors"},
        trackers=[{"kind": "wandb", "entity": "alice", "project": "secret-project"}],
        data={
            "sources": [{"kind": "folder", "path": str(folder)}],
            "captions": {"trigger": "thing", "prefix": "an ordinary caption"},
            "cache": {"folder": "alice/cache"},
        },
    )
    info = PngInfo()
    info.add_text("parameters", "alice")
    Image.new("RGB", (16, 16)).save(root / "previews" / "step-000040" / "00.png", pnginfo=info)
    publication = wanted(root)
    assert "base" in publication.card
    for upload in publication.uploads:
        content = upload.content if isinstance(upload.content, bytes) else upload.content.read_bytes()
        assert not [word for word in (*PRIVATE, str(tmp_path)) if word.encode() in content], upload.name


EVIL = (
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "# no\n---\na: b",
)


def test_words_of_a_recipe_are_words_in_the_card(run_folder: MakeRun) -> None:
    root = run_folder(
        previews={"prompts": list(EVIL)},
        prompts=len(EVIL),
        data={"sources": [{"kind": "folder", "path": "x"}], "captions": {"trigger": "```\n<script>alert(1)</script>"}},
    )
    card = wanted(root).card
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["widget"][0]["text"] == EVIL[0]
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", text)
    for sign in ("<", "](java", "](http", "://"):
        assert not re.search(rf"(?<!\\){re.escape(sign)}", outside), sign
    assert not re.search(r"(?m)^(# no|---|a: b)", outside)


@pytest.mark.parametrize("text", ["a", "``` x", "`````\n````", ""])
def test_code_cannot_end_its_own_block(text: str) -> None:
    lines = fenced(text).strip().split("\n")
    fence = lines[0].removesuffix("text")
    assert set(fence) == {"`"}
    assert lines[-1] == fence
    assert not [line for line in lines[1:-1] if fence in line]


def test_plain_text_stays_on_one_line() -> None:
    assert plain("a\n# b\u202e") == "a\\\\n\\# b\\\\u202e"


@pytest.mark.parametrize("name", ["blob", "a/b/c", "../x", "a/..", "https://x/y", "a/b c", "a/", ""])
def test_other_names_are_refused(run_folder: MakeRun, name: str) -> None:
    with pytest.raises(RecipeError, match="no name of a repository"):
        publication_of(RunRecord.read(run_folder()), name, private=False)


def test_a_run_without_a_result_has_nothing_to_publish(run_folder: MakeRun) -> None:
    with pytest.raises(CheckpointError, match="no result"):
        wanted(run_folder(done=False))
    with pytest.raises(RecipeError, match="licence"):
        wanted(run_folder(name="other"), license_id="a: b\nc: d")


def test_the_verb_shows_first_and_uploads_only_when_told(
    run_folder: MakeRun, logged_in: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    order = ["publish", str(run_folder()), "--to", "me/tried", "--pictures", "1"]
    assert run([*order, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for words in ("# tried", "tried.safetensors  10 bytes", "pictures/00.png", "No licence is stated", "(public)"):
        assert words in said
    assert "pictures/01.png" not in said
    assert run(order) == 2
    assert "Nothing was uploaded" in capsys.readouterr().err
    assert logged_in.asked == []
    assert run([*order, "--yes"]) == 0
    assert "It is at" in capsys.readouterr().out
    assert set(logged_in.files) == {"README.md", "tried.safetensors", "pictures/00.png"}
