"""Where faces are found, and the frame around each."""

import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from trainer.core.errors import RecipeError
from trainer.sampling.faces import FaceFinder, Square, framed

Portrait = Callable[[int], Image.Image]


@pytest.fixture
def finder() -> FaceFinder:
    pytest.importorskip("cv2")
    return FaceFinder("--faces")


def test_faces_are_found_from_top_to_bottom_at_any_size(finder: FaceFinder, portrait: Portrait) -> None:
    picture = Image.new("RGB", (600, 400), (90, 110, 100))
    picture.paste(portrait(200), (40, 100))
    picture.paste(portrait(120), (400, 20))
    small, large = finder.faces(picture)
    for face, left, top, side in ((small, 400, 20, 120), (large, 40, 100, 200)):
        assert abs(face.left + face.side / 2 - (left + side / 2)) < side / 20
        assert abs(face.top + face.side / 2 - (top + 0.52 * side)) < side / 20
        assert 0.6 < face.side / side < 0.75
    twenty = [Square(*(4 * number for number in face)) for face in (small, large)]
    for found, wanted in zip(finder.faces(picture.resize((2400, 1600))), twenty, strict=True):
        assert np.abs(np.subtract(found, wanted)).max() < 16


def test_what_is_no_face_or_too_small_is_passed_over(finder: FaceFinder, portrait: Portrait) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    assert finder.faces(Image.fromarray(noise)) == []
    assert finder.faces(Image.new("L", (20, 20))) == []
    assert finder.faces(portrait(40)) == []  # of 26 pixels
    crowd = Image.new("RGB", (1500, 1500), (90, 110, 100))
    crowd.paste(portrait(80), (700, 700))
    assert finder.faces(crowd) == []  # of 53 pixels, less than a twentieth


def test_a_finding_in_the_middle_of_a_face_is_none(finder: FaceFinder) -> None:
    class Cascade:
        def detectMultiScale(self, *_: object, **__: object) -> "np.ndarray[tuple[int, int], np.dtype[np.int32]]":  # noqa: N802
            return np.array([(10, 10, 100, 100), (40, 60, 33, 33), (110, 20, 50, 50)], dtype=np.int32)

    with patch.object(finder, "_cascade", Cascade()):
        assert finder.faces(Image.new("RGB", (200, 200))) == [Square(10, 10, 100), Square(110, 20, 50)]


def test_in_a_frame_the_eyes_are_where_networks_expect_them(finder: FaceFinder, portrait: Portrait) -> None:
    (face,) = finder.faces(portrait(256))
    frame = framed(face)
    assert framed(Square(100, 100, 100)) == Square(75, 68, 150)
    assert (116 - frame.top) / frame.side == pytest.approx(0.469, abs=0.03)  # the eyes were drawn at 116
    assert (128 - frame.left) / frame.side == pytest.approx(0.5, abs=0.02)


def test_without_opencv_or_its_cascades_it_says_what_to_install(tmp_path: Path) -> None:
    with patch.dict(sys.modules, {"cv2": None}), pytest.raises(RecipeError, match="OpenCV") as error:
        FaceFinder("--faces")
    assert error.value.where == "--faces"
    assert 'pip install "sd-trainer[upscale]"' in (error.value.mend or "")
    pytest.importorskip("cv2")
    with patch("cv2.data.haarcascades", str(tmp_path)), pytest.raises(RecipeError, match="without haarcascade"):
        FaceFinder("--faces")
