"""How long a second `trainer cache` takes over pictures that have not changed, against the first: whole processes.

    python scripts/benchmark/second_cache.py [--count 10000] [--runs 3] [--folder FOLDER] [--out FILE]

Pictures: the one-megapixel JPEGs of `scanning.py`, each with a caption file. The recipe trains on them with the bundled
base at 64 pixels, so that encoding is quick and the second run is compared with the least first one. Both are the
command as a person runs it, with its imports and the loading of the model.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scanning import write
from startup import environment

RECIPE = """
name: benchmark
model: {kind: sd1, weights: bundled}
adapter: {kind: lora}
data: {sources: [{kind: folder, path: pictures}], resolution: 64, cache: {folder: cache}}
"""


def seconds(folder: Path) -> float:
    """How long `trainer cache` takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trainer", "cache", "recipe.yaml"], cwd=folder, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Write the pictures, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3, help="of the second command")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    around = environment()
    print("  ".join(f"{name} {value}" for name, value in around.items()), flush=True)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        root = Path(name)
        for folder in write(root / "pictures", asked.count, 200, 20):
            for picture in list(folder.iterdir()):
                picture.with_suffix(".txt").write_text(f"a picture, {int(picture.stem) % 100}", encoding="utf-8")
        (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        time.sleep(2.5)  # a file that was changed a moment ago is not trusted to be unchanged
        first = seconds(root)
        again = statistics.median(seconds(root) for _ in range(asked.runs))
    figures = {
        "pictures": asked.count,
        "seconds of the first": round(first, 2),
        "seconds of the second, median": round(again, 2),
        "second against first": round(again / first, 4),
    }
    for title, value in figures.items():
        print(f"{title:32} {value}")
    if asked.out is not None:
        content = json.dumps({"environment": around, "figures": figures}, indent=2) + "\n"
        asked.out.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
