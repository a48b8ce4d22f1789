"""A small picture inside a file's metadata, which programs show beside its name."""

import base64
import io

from PIL import Image, ImageOps

_SIDE = 256  # pixels; the header is read whole each time that a program lists its files
_QUALITY = 85


def as_thumbnail(picture: Image.Image) -> str:
    """The picture as a data URL: a JPEG of at most 256 pixels a side, upright, encoded anew.

    Nothing but pixels goes into it: no EXIF, comment, profile or text that the picture came with.

    Args:
        picture: of any mode; transparent parts become white.
    """
    small = ImageOps.exif_transpose(picture).convert("RGBA")
    small.thumbnail((_SIDE, _SIDE))
    plain = Image.new("RGB", small.size, "white")  # a new picture: Pillow carries comments over to the old one's copies
    plain.paste(small, mask=small.getchannel("A"))
    encoded = io.BytesIO()
    plain.save(encoded, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"
