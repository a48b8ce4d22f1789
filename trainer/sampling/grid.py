"""Pictures -> one labelled sheet."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_LEAST_CELL = 128  # pixels: smaller pictures are enlarged by a whole factor, so that the eye can judge them
_MARGIN = 6


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
    font = ImageFont.load_default(size=13)
    heads = [_wrapped(label, width, font) for label in column_labels]
    head_height = max((head.count("\n") + 1 for head in heads), default=0) * 16 + _MARGIN
    side = max((int(font.getlength(label)) for label in row_labels), default=0) + 2 * _MARGIN
    size = (side + len(column_labels) * (width + _MARGIN), head_height + len(rows) * (height + _MARGIN))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.multiline_text((side + column * (width + _MARGIN), 2), head, fill="black", font=font, spacing=2)
    for number, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        top = head_height + number * (height + _MARGIN)
        pen.text((_MARGIN, top + height // 2 - 8), label, fill="black", font=font)
        for column, picture in enumerate(row):
            enlarged = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (side + column * (width + _MARGIN), top))
    return sheet


def _wrapped(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The label on at most three lines of `width` pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > 3:
        lines = [*lines[:2], lines[2] + "…"]
    return "\n".join(line for line in lines if line)
