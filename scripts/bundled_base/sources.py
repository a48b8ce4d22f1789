"""Fetches the picture packages. All are MIT, Apache-2.0 or CC0; README.md lists them one by one."""

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

NPM_PACKAGES = (
    "@iconify-json/noto@1.2.9",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/fluent-emoji@1.2.7",
    "@iconify-json/fxemoji@1.2.2",
    "@lobehub/fluent-emoji-3d@1.1.0",
    "@dicebear/core@9.4.3",
    "@dicebear/collection@9.4.3",
    "emojibase-data@17.0.0",
)
MERGES_WHEEL = "open-clip-torch==3.3.0"
MERGES_IN_WHEEL = "open_clip/bpe_simple_vocab_16e6.txt.gz"
AVATARS_PER_STYLE = 900


def fetch_pictures(npm_folder: Path) -> None:
    """Install the pinned packages; none of their scripts is run."""
    npm_folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(npm_folder)]
    subprocess.run([*command, *NPM_PACKAGES], check=True)


def draw_avatars(npm_folder: Path, output: Path) -> None:
    """Draw the DiceBear characters with node."""
    script = Path(__file__).with_name("dicebear.mjs")
    subprocess.run(["node", str(script), str(npm_folder), str(output), str(AVATARS_PER_STYLE)], check=True)


def fetch_merges(folder: Path) -> None:
    """Leave CLIP's merges as `merges_full.txt`; they come out of a wheel that is downloaded but not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), MERGES_WHEEL]
    subprocess.run(command, check=True)
    wheel = next(folder.glob("open_clip_torch-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        merges = gzip.decompress(archive.read(MERGES_IN_WHEEL))
    (folder / "merges_full.txt").write_bytes(merges)
    wheel.unlink()
