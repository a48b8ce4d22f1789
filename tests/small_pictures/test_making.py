"""The larger pictures themselves: of the wanted size, as the network made them, with their transparency."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.core.errors import MemoryPlanError, RecipeError
from trainer.data.decoding import ImageLimits, decode, open_image
from trainer.data.example import Size
from trainer.sampling.enlarging import Enlarger
from trainer.small_pictures.making import Making, enlarged, with_transparency
from trainer.small_pictures.record import Entry, Order, Record
from trainer.small_pictures.searching import search

CPU = torch.device("cpu")
LANCZOS = Image.Resampling.LANCZOS
ORDER = Order(folder="f", network="n", faces="", least=96)
Work = Callable[[], Making]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A smooth picture, one that lies on its side, and one with transparent parts."""
    made = tmp_path / "in"
    made.mkdir()
    x, y = np.meshgrid(np.arange(60), np.arange(48))
    colours = np.stack((4 * x, 5 * y, 255 - 2 * x - 2 * y), axis=-1).clip(0, 255).astype(np.uint8)
    Image.fromarray(colours).save(made / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(colours).save(made / "b.jpg", exif=turned, quality=95)
    opacity = (255 * np.hypot(x - 30, y - 24).clip(0, 24) / 24).astype(np.uint8)
    Image.merge("RGBA", (*Image.fromarray(colours).split(), Image.fromarray(opacity))).save(made / "c.png")
    (made / "a.txt").write_bytes(b"\xef\xbb\xbfwords, as they are\r\n")
    return made


@pytest.fixture
def work(esrgan: Path, tmp_path: Path) -> Work:
    def begun() -> Making:
        out = tmp_path / "out"
        return Making(out=out, record=Record(out, ORDER), enlarger=Enlarger(esrgan, CPU), restorer=None)

    return begun


def untold(title: str, done: int, total: int) -> None:
    pass


def do(work: Making, folder: Path, *, everything: bool = False, least: int = 96) -> Making:
    before = {name: entry.to for name, entry in work.record.entries.items()}
    found = search(folder, work.out, least, limits=ImageLimits(), before=before)
    work.run(found.small, found.large if everything else (), untold)
    return work


def test_a_picture_is_what_the_network_made_brought_to_size(folder: Path, work: Work, esrgan: Path) -> None:
    made = do(work(), folder)
    assert (made.outcome.enlarged, made.outcome.failed) == (3, [])
    assert made.outcome.most == pytest.approx(96 / np.sqrt(60 * 48), rel=0.01)
    network = Enlarger(esrgan, CPU)
    for name, size in (("a.png", (108, 86)), ("b.jpg", (86, 108))):
        with Image.open(made.out / f"{name[0]}.png") as file:
            assert (file.format, file.mode, file.size, file.getexif(), file.info) == ("PNG", "RGB", size, {}, {})
            expected = network.enlarged(open_image(folder / name, ImageLimits())).resize(size, LANCZOS)
            assert np.array_equal(np.asarray(file), np.asarray(expected))
    assert (made.out / "a.txt").read_bytes() == (folder / "a.txt").read_bytes()


def test_transparent_parts_stay_transparent(folder: Path, work: Work) -> None:
    path = do(work(), folder).out / "c.png"
    given = decode((folder / "c.png").read_bytes(), "c.png", ImageLimits())
    back = decode(path.read_bytes(), "c.png", ImageLimits())
    assert given.alpha is not None
    assert back.alpha is not None
    assert np.array_equal(np.asarray(back.alpha), np.asarray(given.alpha.resize(back.image.size, LANCZOS)))


@pytest.mark.parametrize("size", [(50, 40), (33, 61)])
def test_colours_come_out_from_under_white_as_they_were(size: tuple[int, int]) -> None:
    chance = np.random.default_rng(0)
    alpha = chance.integers(0, 256, size, dtype=np.uint8)
    colours = chance.integers(0, 256, (*size, 3), dtype=np.uint8)
    share = alpha[..., None] / 255
    on_white = np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)
    result = np.asarray(with_transparency(Image.fromarray(on_white), Image.fromarray(alpha)), dtype=float)
    assert np.array_equal(result[..., 3], alpha)
    assert np.abs(np.rint(result[..., :3] * share + 255 * (1 - share)) - on_white).max() <= 1
    opaque = alpha > 200
    assert np.abs(result[opaque][:, :3] - colours[opaque]).max() <= 1
    assert (result[alpha == 0][:, :3] == 255).all()


@pytest.mark.parametrize(("target", "times"), [((60, 50), 1), ((100, 80), 1), ((101, 81), 2), ((400, 320), 3)])
def test_the_network_is_asked_no_more_often_than_needed(target: tuple[int, int], times: int, esrgan: Path) -> None:
    network = Enlarger(esrgan, CPU)
    with patch.object(network, "enlarged", wraps=network.enlarged) as asked:
        made = enlarged(Image.linear_gradient("L").convert("RGB").resize((50, 40)), Size(*target), network)
    assert (made.size, asked.call_count) == (target, times)


def test_a_second_run_makes_only_what_is_missing_or_changed(folder: Path, work: Work, tmp_path: Path) -> None:
    first = do(work(), folder)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.out.glob("*.png")}
    (first.out / "a.png").unlink()
    (first.out / "a.txt").write_text("mended by a person", encoding="utf-8")
    Image.new("RGB", (50, 50), "red").save(folder / "b.jpg")
    again = do(work(), folder)
    assert (again.outcome.enlarged, again.outcome.there) == (2, 1)
    assert (again.out / "c.png").stat().st_mtime_ns == stamps["c.png"]
    with Image.open(again.out / "b.png") as file:
        assert file.size == (96, 96)
    assert (again.out / "a.txt").read_text(encoding="utf-8") == "mended by a person"
    last = do(work(), folder)
    assert (last.outcome.enlarged, last.outcome.there) == (0, 3)
    assert len(last.record.entries) == 3
    assert (tmp_path / "out" / "enlarged.jsonl").read_text(encoding="utf-8").count("\n") == 4


def test_work_that_was_killed_goes_on(folder: Path, work: Work, tmp_path: Path) -> None:
    begun = work()
    killed = patch.object(Enlarger, "enlarged", side_effect=[Image.new("RGB", (120, 96)), KeyboardInterrupt])
    with killed, pytest.raises(KeyboardInterrupt):
        do(begun, folder)
    assert begun.outcome.enlarged == 1
    record = tmp_path / "out" / "enlarged.jsonl"
    with record.open("ab") as file:
        file.write(b'{"picture": "./b.jpg", "key": "12')  # what a power cut leaves of a line
    (tmp_path / "out" / ".b.png.0123456789ab.tmp").write_bytes(b"half a picture")
    done = do(work(), folder)
    assert (done.outcome.enlarged, done.outcome.there) == (2, 1)
    assert sorted(path.name for path in done.out.iterdir() if path.name != ".enlarging.lock") == [
        "a.png",
        "a.txt",
        "b.png",
        "c.png",
        "enlarged.jsonl",
    ]
    assert len(Record(done.out, ORDER).entries) == 3


def test_large_pictures_are_copied_byte_for_byte(folder: Path, work: Work) -> None:
    made = do(work(), folder, everything=True, least=53)  # 60 x 48 is more than 53 x 53
    assert (made.outcome.copied, made.outcome.enlarged) == (3, 0)
    for name in ("a.png", "b.jpg", "c.png", "a.txt"):
        assert (made.out / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_not_ours_is_not_replaced(folder: Path, work: Work) -> None:
    begun = do(work(), folder)
    Image.new("RGB", (40, 40)).save(folder / "new.png")
    (begun.out / "new.png").write_bytes(b"somebody's")
    again = do(work(), folder)
    assert again.outcome.failed == [("new.png", "Where it belongs is something else.")]
    assert (again.out / "new.png").read_bytes() == b"somebody's"


def test_a_name_that_becomes_too_long_stops_nobody_else(folder: Path, work: Work) -> None:
    (folder / "a.png").rename(folder / ("n" * 252 + ".jp"))
    made = do(work(), folder)
    assert made.outcome.enlarged == 2
    assert [reason for _, reason in made.outcome.failed] == ["It cannot be written: File name too long."]


def test_only_the_same_work_goes_on(folder: Path, work: Work, tmp_path: Path) -> None:
    do(work(), folder)
    out = tmp_path / "out"
    for other, what in (
        (replace(ORDER, network="m"), "with another network"),
        (replace(ORDER, faces="m"), "other weights for faces"),
        (replace(ORDER, least=1, folder="g"), "for another folder of pictures, and for another size"),
    ):
        with pytest.raises(RecipeError, match=what):
            Record(out, other)
    (out / "enlarged.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(RecipeError, match="no record"):
        Record(out, ORDER)
    with pytest.raises(RecipeError, match=r"not empty .* a\.png"):
        Record(folder, ORDER)
    with pytest.raises(RecipeError, match="a file"):
        Record(folder / "a.png", ORDER)


def test_a_name_of_any_bytes_comes_back_from_the_record(tmp_path: Path) -> None:
    record = Record(tmp_path / "out", ORDER)
    record.begin()
    entry = Entry(picture="a: \udcff\n.jpg", key="k", to='sub/"b".png')
    record.note(entry)
    assert Record(tmp_path / "out", ORDER).entries == {entry.picture: entry}


def test_two_processes_do_not_write_at_once(folder: Path, work: Work) -> None:
    begun = work()

    def meanwhile(*_: object) -> None:
        with pytest.raises(RecipeError, match="Another process"):
            do(work(), folder)

    found = search(folder, begun.out, 96, limits=ImageLimits(), before={})
    begun.run(found.small[:1], (), meanwhile)
    assert begun.outcome.enlarged == 1


def test_too_little_memory_names_the_picture(folder: Path, work: Work) -> None:
    begun = work()
    with (
        patch.object(Enlarger, "enlarged", side_effect=torch.OutOfMemoryError("CUDA out of memory.")),
        pytest.raises(MemoryPlanError, match="108 x 86") as error,
    ):
        do(begun, folder)
    assert error.value.where == "a.png"
