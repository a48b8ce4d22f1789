"""The sheet holds every picture, enlarged where it is small, with room for words."""

from PIL import Image

from trainer.sampling.grid import grid


def test_every_picture_stands_on_the_sheet() -> None:
    colours = [["red", "green"], ["blue", "black"]]
    rows = [[Image.new("RGB", (64, 64), colour) for colour in row] for row in colours]
    sheet = grid(rows, ["base", "step 100"], ["a prompt", "a longer prompt " * 6])
    assert sheet.width > 2 * 128
    assert sheet.height > 2 * 128
    counts = {colour: count for count, colour in sheet.getcolors(maxcolors=1 << 20) or []}
    for colour in ((255, 0, 0), (0, 128, 0), (0, 0, 255)):
        assert counts[colour] >= 128 * 128 * 0.95
