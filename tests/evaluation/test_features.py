"""The built-in features tell real characters and styles apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from trainer.evaluation.features import ORDINARY, BuiltIn, Rows, measure_ordinary
from trainer.evaluation.scores import kid, leave_one_out, likeness, share_nearer

DATASETS = Path(__file__).parents[2] / "datasets"


def pictures(name: str, most: int) -> list[Image.Image]:
    files = sorted((DATASETS / name).rglob("*.png"))
    assert files
    opened: list[Image.Image] = []
    for path in files[:: -(-len(files) // most)]:
        with Image.open(path) as file:
            opened.append(file.convert("RGBA"))
    return opened


@pytest.fixture(scope="module")
def sets() -> dict[str, Rows]:
    encode = BuiltIn().load()
    return {name: encode(pictures(name, 40)) for name in ("blob", "ink", "ordinary")}


def test_a_row_depends_on_its_picture_alone() -> None:
    some = pictures("blob", 6)
    encode = BuiltIn().load()
    together = encode(some)
    assert together.dtype == np.float32
    assert together.shape == (len(some), 832)
    np.testing.assert_allclose(encode(some[2:3])[0], together[2], atol=1e-5)
    assert encode([]).shape == (0, 832)


def test_size_mode_and_transparency_do_not_matter() -> None:
    encode = BuiltIn().load()
    picture = pictures("blob", 1)[0]
    clear = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    clear.alpha_composite(picture)
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    large = white.resize((192, 192), Image.Resampling.BICUBIC)
    one, other, third = encode([clear, white, large])
    np.testing.assert_array_equal(one, other)
    assert likeness(third[None], other[None]) > 0.99
    assert encode([picture.convert("L"), picture.convert("P")]).shape == (2, 832)


def test_flat_pictures_have_finite_features() -> None:
    flat = [Image.new("RGB", (5, 300), colour) for colour in ("white", "black", "red")]
    assert np.isfinite(BuiltIn().load()(flat)).all()


@pytest.mark.parametrize("name", ["blob", "ink"])
def test_a_set_is_nearer_to_itself_than_to_ordinary_pictures(sets: dict[str, Rows], name: str) -> None:
    """Half of a set, held out, stands for what a perfect adapter would draw."""
    rows = np.random.default_rng(0).permutation(sets[name])
    drawn, references = rows[::2], rows[1::2]
    assert share_nearer(drawn, references, sets["ordinary"]) > 0.7  # by chance: 0.32
    assert likeness(drawn, references) > likeness(sets["ordinary"], references) + 0.3
    assert kid(drawn, references) < 0.2 * kid(sets["ordinary"], references)
    assert likeness(drawn, references) == pytest.approx(leave_one_out(references), abs=0.1)


def test_one_set_is_not_taken_for_another(sets: dict[str, Rows]) -> None:
    assert share_nearer(sets["blob"], sets["ink"], sets["ordinary"]) < 0.05
    assert share_nearer(sets["ink"], sets["blob"], sets["ordinary"]) < 0.05


def test_the_shipped_numbers_are_those_of_the_shipped_pictures() -> None:
    measured, shipped = measure_ordinary(pictures("ordinary", 1000)), load_file(ORDINARY)
    for name in ("mean", "scale"):
        np.testing.assert_allclose(measured[name], shipped[name], atol=1e-4)
