"""Pictures that are asked for one by one, each with its own solver and settings, drawn together where they can be."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from trainer.families.model import DiffusionModel
from trainer.sampling.generate import Drawing, drawn
from trainer.sampling.image_to_image import Start
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import Sampler
from trainer.sampling.understanding import Understood, understand


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One picture that is asked for."""

    prompt: Prompt  # with width and height
    settings: DrawSettings
    sampler: Sampler


def drawn_as_asked(
    model: DiffusionModel, asked: Sequence[Asked], start: Start | None, progress: Callable[[int], None]
) -> Iterator[tuple[int, Image.Image]]:
    """Each picture with its place in `asked`, as soon as it is there; fewer at once where memory runs out.

    Text encoders leave the memory before the first one is drawn.

    Args:
        model: draws with whatever adapter is attached.
        asked: in any order.
        start: a picture to begin with; None: noise.
        progress: told how many pictures are new.
    """
    understood = understand(model, [one.prompt for one in asked])
    model.release_encoders()
    alike: dict[tuple[Sampler, DrawSettings], list[int]] = {}
    for place, one in enumerate(asked):
        alike.setdefault((one.sampler, one.settings), []).append(place)
    for (sampler, settings), places in alike.items():
        first = asked[places[0]].prompt
        size = (first.width or model.resolution, first.height or model.resolution)
        how = Drawing(sampler=sampler, settings=settings, size=size, start=start, yielding=True)
        of_these = Understood([asked[place].prompt for place in places], understood.wanted, understood.unwanted)
        for number, picture in drawn(model, of_these, how, progress):
            yield places[number], picture
