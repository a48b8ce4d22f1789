"""Where the faces in a picture are, and the square around each that a face restoration network expects."""

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image

from trainer.core.errors import RecipeError

# Of OpenCV's frontal cascades this one found 98 of 100 faces (LFW), and nothing in 100 pieces of pictures without faces
# nor in 20 pictures of things; `default` took gravel and a clock for faces.
_CASCADE: Final = "haarcascade_frontalface_alt2.xml"
_NEIGHBOURS: Final = 5  # findings on top of each other that make a face
_SEEN: Final = 768  # pixels along the shorter side that are looked at: so large pictures take no longer
_LEAST: Final = 32  # pixels: of a smaller face nothing is left that could be restored
_LEAST_SHARE: Final = 0.05  # of the shorter side: what is smaller is more often a pattern than a face

# Where the eyes are in what the cascade finds: 0.37 of its side apart and 0.385 below its top (medians of 81 faces).
# Where they are in the pictures that the networks were trained on, aligned as in FFHQ (Karras et al. 2019,
# arXiv:1812.04948): 0.246 of the side apart, 0.469 below the top. So the frame is 0.37 / 0.246 = 1.5 times as wide, and
# begins 0.469 * 1.5 - 0.385 = 0.32 above.
_FRAME: Final = 1.5
_ABOVE: Final = 0.32


class Square(NamedTuple):
    """A part of a picture, in pixels; a frame may lie partly outside of it."""

    left: int
    top: int
    side: int


class FaceFinder:
    """Finds faces that look at us, by a cascade that comes with OpenCV.

    Source: Viola and Jones 2001, doi:10.1109/CVPR.2001.990517; Lienhart and Maydt 2002, doi:10.1109/ICIP.2002.1038171.
    """

    def __init__(self, option: str) -> None:
        """Ready.

        Args:
            option: what on the command line asks for it.

        Raises:
            RecipeError: the OpenCV library is not installed, or without its cascades.
        """
        try:
            from cv2 import CascadeClassifier  # pyright: ignore[reportMissingImports]
            from cv2.data import haarcascades  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise RecipeError(
                f"Faces are found by the OpenCV library, which cannot be used here: {error}.",
                where=option,
                mend='Install it: pip install "sd-trainer[upscale]".',
            ) from error
        self._cascade: Any = CascadeClassifier(str(Path(haarcascades) / _CASCADE))  # Any: OpenCV may be missing
        if self._cascade.empty():
            raise RecipeError(
                f"OpenCV is installed without {_CASCADE}, by which faces are found.",
                where=option,
                mend='Install it again: pip install --force-reinstall "opencv-python-headless<5".',
            )

    def faces(self, picture: Image.Image) -> list[Square]:
        """The faces from top to bottom, without those that lie in the middle of a larger one."""
        times = max(1.0, min(picture.size) / _SEEN)
        seen = picture.convert("L")
        if times > 1:
            seen = seen.resize((round(seen.width / times), round(seen.height / times)), Image.Resampling.BOX)
        least = round(max(_LEAST / times, _LEAST_SHARE * min(seen.size)))
        found = self._cascade.detectMultiScale(
            np.asarray(seen), scaleFactor=1.1, minNeighbors=_NEIGHBOURS, minSize=(least, least)
        )
        squares = [Square(*(round(int(number) * times) for number in box[:3])) for box in found]
        return sorted(
            (one for one in squares if not any(_within(one, other) for other in squares)),
            key=lambda one: (one.top, one.left, one.side),
        )


def framed(face: Square) -> Square:
    """The square around a face in which its eyes are where restoration networks expect them."""
    side = round(_FRAME * face.side)
    return Square(face.left - (side - face.side) // 2, face.top - round(_ABOVE * face.side), side)


def _within(one: Square, other: Square) -> bool:
    """Whether the middle of `one` lies in the larger `other`."""
    right, down = one.left + one.side / 2 - other.left, one.top + one.side / 2 - other.top
    return one.side < other.side and 0 <= right <= other.side and 0 <= down <= other.side
