"""Pictures -> one labelled sheet."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from trainer.sampling.labels import Lettering, letters_for

_LEAST_CELL = 128  # pixels: smaller pictures are enlarged by a whole factor, so that the eye can judge them
_MARGIN = 6
_HEAD = 3  # lines above a column
_SIDE = 320  # pixels: words before a row may be so wide, however small the pictures are


def grid(rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str]) -> Image.Image:
    """One sheet: a row of pictures a line, words before each row and above each column.

    Args:
        rows: of equal length; pictures may differ in size, each is put into a cell of the largest.
        row_labels: one a row.
        column_labels: one a column; wrapped to the column's width.
    """
    pictures = [picture for row in rows for picture in row]
    largest = max(max(picture.size) for picture in pictures)
    factor = max(1, -(-_LEAST_CELL // largest))
    width, height = (factor * max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    letters = Lettering(letters_for(width))
    heads = [letters.wrapped(label, width, _HEAD) for label in column_labels]
    head_height = max(map(len, heads), default=0) * (letters.size * 16 // 13) + _MARGIN
    sides = [letters.wrapped(label, max(width, _SIDE), max(1, height // letters.pitch)) for label in row_labels]
    side = max((letters.width(line) for lines in sides for line in lines), default=0) + 2 * _MARGIN
    size = (side + len(column_labels) * (width + _MARGIN), head_height + len(rows) * (height + _MARGIN))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        letters.draw(pen, (side + column * (width + _MARGIN), 2), head)
    for number, (row, lines) in enumerate(zip(rows, sides, strict=True)):
        top = head_height + number * (height + _MARGIN)
        letters.draw(pen, (_MARGIN, top + (height - len(lines) * letters.pitch) // 2), lines)
        for column, picture in enumerate(row):
            enlarged = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (side + column * (width + _MARGIN), top))
    return sheet
