"""What is said on how to use each kind of file."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.recipe.recipe import Recipe
from trainer.reporting.programs import Program, programs_for
from trainer.reporting.usage import result_of

WORKS = {
    "lora": ({"adapter": {"kind": "lora"}}, {"AUTOMATIC1111 and Forge", "ComfyUI", "diffusers", "sd-scripts"}),
    "dora": ({"adapter": {"kind": "lora", "decompose": "inputs"}}, {"AUTOMATIC1111 and Forge", "ComfyUI"}),
    "loha": ({"adapter": {"kind": "loha"}}, {"AUTOMATIC1111 and Forge", "ComfyUI", "sd-scripts"}),
    "lokr": ({"adapter": {"kind": "lokr"}}, {"AUTOMATIC1111 and Forge", "ComfyUI", "sd-scripts"}),
    "diffusers": ({"export": {"layout": "diffusers"}}, {"diffusers"}),
    "peft": ({"export": {"layout": "peft"}}, {"diffusers"}),
    "full": ({"adapter": {"kind": "full"}}, {"AUTOMATIC1111 and Forge", "ComfyUI", "diffusers", "sd-scripts"}),
    "folder": ({"adapter": {"kind": "full"}, "export": {"layout": "folder"}}, {"diffusers"}),
    "bundled": ({"model": {"kind": "sd1", "weights": "bundled"}}, {"diffusers"}),
}  # by docs/methods.md and docs/weights.md


def said(recipe: Recipe, strength: float = 0.8) -> dict[str, Program]:
    result = result_of(recipe, Path("runs") / recipe.name / f"{recipe.name}.safetensors", strength)
    return {program.name: program for program in programs_for(result)}


@pytest.mark.parametrize("name", WORKS)
def test_each_kind_of_file_works_where_it_was_measured_to(recipe: Callable[..., Recipe], name: str) -> None:
    changes, works = WORKS[name]
    programs = said(recipe(**changes))
    assert {one.name for one in programs.values() if one.works} == {"trainer", *works}
    assert set(programs) == {"trainer", "AUTOMATIC1111 and Forge", "ComfyUI", "diffusers", "sd-scripts"}
    assert all(one.how for one in programs.values())


def test_scripts_for_diffusers_are_python(recipe: Callable[..., Recipe]) -> None:
    words: dict[str, Any] = {"kind": "pivotal", "words": [{"word": "<zwx>", "start": "face"}]}
    evil = {"sources": [{"kind": "folder", "path": "x"}], "captions": {"trigger": 'a "quoted\\ word'}}
    for changes in (*(changes for changes, _ in WORKS.values()), {"adapter": words}, {"data": evil}):
        code = said(recipe(**changes))["diffusers"].code
        if code:
            compile(code, "the report", "exec")
            assert "picture.png" in code


def test_a_trigger_cannot_give_the_shell_an_order(recipe: Callable[..., Recipe]) -> None:
    evil = '"; touch HIT; $(touch HIT) `touch HIT`'
    programs = said(recipe(data={"sources": [{"kind": "folder", "path": "x"}], "captions": {"trigger": evil}}))
    for name in ("trainer", "sd-scripts"):
        assert shlex.split(programs[name].code)[-1] == f"{evil}, portrait, forest"


def test_trigger_and_strength_are_said(recipe: Callable[..., Recipe]) -> None:
    assert said(recipe())["AUTOMATIC1111 and Forge"].code == "thing, portrait, forest <lora:tried:0.8>"
    assert "--network_mul 0.8" in said(recipe())["sd-scripts"].code
    assert 'set_adapters("own", 0.8)' in said(recipe())["diffusers"].code


def test_files_of_new_words_are_named(recipe: Callable[..., Recipe]) -> None:
    words: dict[str, Any] = {"kind": "pivotal", "words": [{"word": "zwx", "start": "face"}]}
    programs = said(recipe(adapter=words))
    for name in ("AUTOMATIC1111 and Forge", "ComfyUI"):
        assert "zwx" in " ".join(programs[name].how)
    assert "load_textual_inversion" in programs["diffusers"].code
    assert "load_lora_weights" in programs["diffusers"].code
    alone = said(recipe(adapter=words | {"kind": "textual_inversion"}))
    assert "embeddings" in " ".join(alone["AUTOMATIC1111 and Forge"].how)
    assert "load_lora_weights" not in alone["diffusers"].code
