"""Measure on a folder of ordinary pictures what the built-in features subtract and divide by.

Usage: python scripts/measure_ordinary.py FOLDER
"""

import sys
from pathlib import Path

from PIL import Image
from safetensors.numpy import save_file

from trainer.evaluation.features import ORDINARY, measure_ordinary


def main(folder: Path) -> None:
    """Write the numbers where the features look for them."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".webp"})
    pictures: list[Image.Image] = []
    for path in files:
        with Image.open(path) as file:
            pictures.append(file.convert("RGBA"))
    save_file(measure_ordinary(pictures), ORDINARY)
    ORDINARY.chmod(0o644)  # safetensors leaves it readable for its owner alone
    print(f"{len(pictures)} pictures -> {ORDINARY.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
