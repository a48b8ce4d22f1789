"""One whole run without a network, with secrets and private words planted everywhere: nothing leaks."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image, PngImagePlugin

from trainer.core.tensors import read_header

pytestmark = pytest.mark.slow

TOKENS = {  # fake ones, of the form that each service gives out
    "HF_TOKEN": "hf_" + "aB3" * 11,
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYFAKEKEY",
    "GITHUB_TOKEN": "ghp_" + "aB3" * 12,
    "in a caption": "hf_" + "xY7" * 11,
    "in a picture": "sk-" + "qW9" * 12,
}
PRIVATE = "MARKER"  # part of every private word


@dataclass(frozen=True)
class Tried:
    """What a run left behind."""

    code: int
    said: str
    folder: Path  # of the run
    arguments: str  # of every process of it, as the system showed them


@pytest.fixture(scope="module")
def tried(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    """The run, in a home and with pictures that are full of private words."""
    home = tmp_path_factory.mktemp("home") / f"{PRIVATE}-home"
    pictures = home / f"{PRIVATE}-project" / "10_thing"
    pictures.mkdir(parents=True)
    for number in range(3):
        a_private_picture(pictures / f"{PRIVATE}-{number}.png", number)
        words = f"{PRIVATE}caption, thing {number}, {TOKENS['in a caption']}"
        (pictures / f"{PRIVATE}-{number}.txt").write_text(words, encoding="utf-8")
    recipe = home / "tried.yaml"
    recipe.write_text(yaml.safe_dump(a_recipe(small_model, pictures, home)), encoding="utf-8")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_"))},
        **{name: token for name, token in TOKENS.items() if " " not in name},
        "HOME": str(home), "USER": f"{PRIVATE}-user", "LOGNAME": f"{PRIVATE}-user", "HOSTNAME": f"{PRIVATE}-host",
        "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "TMPDIR": str(home),
    }  # fmt: skip
    command = [sys.executable, "-m", "trainer", "train", str(recipe)]
    process = subprocess.Popen(
        [*without_network(), *command],
        cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    arguments = said = ""
    listing = Path(f"/proc/{process.pid}/cmdline")
    while process.poll() is None:
        try:
            said, _ = process.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            arguments += listing.read_bytes().decode() if listing.exists() else ""
    folder = home / "runs" / "tried"
    yield Tried(process.returncode, said, folder, arguments)
    shutil.rmtree(home)


def without_network() -> list[str]:
    """What runs a command where no network is, not even this machine's own, if the system lets us."""
    words = ["unshare", "-rn"]
    possible = shutil.which("unshare") is not None and subprocess.run([*words, "true"], check=False).returncode == 0
    return words if possible else []


def a_private_picture(path: Path, number: int) -> None:
    picture = Image.new("RGB", (16, 16), (40 * number, 100, 50))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", f"{PRIVATE} prompt {TOKENS['in a picture']}")
    exif = picture.getexif()
    exif[0x013B] = f"{PRIVATE} artist"
    picture.save(path, pnginfo=texts, exif=exif)


def a_recipe(model: Path, pictures: Path, home: Path) -> dict[str, object]:
    return {
        "name": "tried",
        "model": {"kind": "sd1", "weights": str(model)},
        "precision": "float32",
        "data": {
            "sources": [{"kind": "folder", "path": str(pictures)}],
            "resolution": 16,
            "cache": {"folder": str(home / "cache")},
        },
        "adapter": {"kind": "lora", "rank": 2},
        "optimizer": {"kind": "adamw", "rate": 1.0e-3},
        "batch": 2,
        "steps": 2,
        "runs": str(home / "runs"),
        "checkpoints": {"every": 1},
        "trackers": [{"kind": "tensorboard"}],
        "previews": {"every": 1, "prompts": ["thing, red"], "size": 16, "draw": {"steps": 2}},
    }


def files_of(tried: Tried) -> list[Path]:
    return sorted(path for path in tried.folder.rglob("*") if path.is_file())


def test_a_run_needs_no_network(tried: Tried) -> None:
    """It runs where not even a connection to this machine can be made; elsewhere see `test_no_network.py`."""
    assert tried.code == 0, tried.said
    assert (tried.folder / "tried.safetensors").is_file()


def test_no_secret_is_kept_or_told(tried: Tried) -> None:
    assert len(files_of(tried)) > 10
    hits = [
        f"{place} in {path.relative_to(tried.folder)}"
        for path in files_of(tried)
        for place, token in TOKENS.items()
        if token.encode() in path.read_bytes()
    ]
    assert hits == []
    told = [place for place, token in TOKENS.items() if token in tried.said or token in tried.arguments]
    assert told == []


def test_nothing_private_is_published(tried: Tried) -> None:
    """What a person gives away: the result, its pictures; and what a tracker is sent."""
    published = [tried.folder / "tried.safetensors", *tried.folder.glob("previews/**/*.png")]
    published += list(tried.folder.glob("tensorboard/*"))
    assert len(published) > 3
    for path in published:
        content = path.read_bytes()
        for word in (PRIVATE, str(tried.folder.parent)):
            assert word.encode() not in content, f"{word} in {path.name}"
    said = read_header(tried.folder / "tried.safetensors").metadata
    assert said
    assert not [key for key, value in said.items() if re.search(rf"\b{re.escape(platform.node())}\b", value)]
    for path in tried.folder.glob("previews/**/*.png"):
        with Image.open(path) as picture:
            assert dict(picture.info) == {}
            assert dict(picture.getexif()) == {}


def test_no_machine_and_nothing_hidden_in_pictures_is_kept_beside_the_run(tried: Tried) -> None:
    """The run's own records may name files and captions, for they stay here; user, machine, EXIF they need not."""
    words = [f"{PRIVATE}{part}" for part in (" artist", " prompt", "-user", "-host")]
    for path in files_of(tried):
        found = [word for word in words if word.encode() in path.read_bytes()]
        assert found == [], path.name


def test_nothing_is_left_elsewhere(tried: Tried) -> None:
    """A run writes its folder and the cache, and nothing into the home or the folder for temporary files."""
    home = tried.folder.parents[1]
    assert sorted(path.name for path in home.iterdir()) == sorted([f"{PRIVATE}-project", "cache", "runs", "tried.yaml"])


def test_the_result_can_be_read_by_others_and_nothing_can_be_written(tried: Tried) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert tried.folder.joinpath("tried.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    for path in files_of(tried):
        assert path.stat().st_mode & 0o777 & mask == 0, path.name


def test_records_are_json(tried: Tried) -> None:
    for line in (tried.folder / "events.jsonl").read_text(encoding="utf-8").splitlines():
        assert "kind" in json.loads(line)
