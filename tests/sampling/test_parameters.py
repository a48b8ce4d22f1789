"""What a PNG says of how it was drawn."""

import re
from pathlib import Path

from PIL import Image

from trainer.sampling.parameters import Drawn, Origin, parameters_of, save_png
from trainer.sampling.prompts import DrawSettings, Prompt
from trainer.sampling.samplers import SAMPLERS, TITLES

# As A1111 and the sites that read it take the last line apart.
_FACT = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
HASH = "0123456789abcdef" * 4


def drawn(prompt: Prompt, origin: Origin) -> Drawn:
    return Drawn(
        prompt=prompt, settings=DrawSettings(steps=28, guidance=7.5), sampler=SAMPLERS["dpm++_2m_karras"], origin=origin
    )


def test_it_is_read_back_as_a1111_writes_it() -> None:
    origin = Origin(model="base, best: v1", adapter="blob", strength=0.8, adapter_hash=HASH, clip_skip=2)
    text = parameters_of(drawn(Prompt(text="(blob:1.2), line", negative="bad, worse", seed=7), origin), (832, 1216))
    prompt, negative, last = text.split("\n")
    assert prompt == "(blob:1.2), line <lora:blob:0.8>"
    assert negative == "Negative prompt: bad, worse"
    facts = dict(_FACT.findall(last))
    assert facts["Steps"] == "28"
    assert facts["Sampler"] == "DPM++ 2M Karras"
    assert facts["CFG scale"] == "7.5"
    assert facts["Seed"] == "7"
    assert facts["Size"] == "832x1216"
    assert facts["Model"] == '"base, best: v1"'
    assert facts["Clip skip"] == "2"
    assert facts["Lora hashes"] == '"blob: 0123456789ab"'


def test_what_others_cannot_load_is_named_without_a_hash() -> None:
    text = parameters_of(drawn(Prompt(text="a"), Origin(adapter="blob-000100", strength=1.0)), (64, 64))
    assert "<lora" not in text
    assert "hashes" not in text
    assert "Adapter: blob-000100 at 1" in text
    bare = parameters_of(drawn(Prompt(text="a"), Origin(adapter="blob", strength=0.0, adapter_hash=HASH)), (64, 64))
    assert "blob" not in bare


def test_a_png_holds_it_in_any_language_or_holds_nothing(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), "red")
    save_png(tmp_path / "a.png", picture, "日本語, ü\nSteps: 1")
    save_png(tmp_path / "b.png", picture)
    with Image.open(tmp_path / "a.png") as told, Image.open(tmp_path / "b.png") as bare:
        assert told.info["parameters"] == "日本語, ü\nSteps: 1"
        assert bare.info == {}


def test_every_sampler_has_a_title() -> None:
    assert TITLES.keys() == SAMPLERS.keys()
