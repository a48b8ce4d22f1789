"""The cache filled through Ray: really run with two workers on this machine."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer import __version__, ray_cache
from trainer.core.device import Precision
from trainer.core.errors import DataError, NonFiniteError, TrainerError
from trainer.core.seeds import Seeds
from trainer.data.buckets import Bucket
from trainer.data.cropping import Cut
from trainer.data.decoder import PictureWork
from trainer.data.example import Example, Size
from trainer.data.filling import CacheReport, Needs, fill_cache
from trainer.data.scanning import scan
from trainer.data.shards import ShardStore
from trainer.ray_cache import Worker, fill_cache_with_ray
from trainer.recipe.recipe import Recipe

RecipeOf = Callable[[str], Recipe]


@pytest.fixture
def recipe_of(pictures: Path, small_model: Path, tmp_path: Path) -> RecipeOf:
    """A recipe on the five pictures, one of a name that is no UTF-8 and one with a mask, with a cache of this name."""
    strange = os.fsdecode(b"caf\xe9.png")
    picture = Image.new("RGB", (16, 24), "brown")
    picture.putalpha(Image.linear_gradient("L").resize((16, 24)))
    picture.save(pictures / strange)

    def make(cache: str) -> Recipe:
        return Recipe.model_validate(
            {
                "name": "ray",
                "model": {"kind": "sd1", "weights": str(small_model)},
                "precision": "float32",
                "data": {
                    "sources": [{"kind": "folder", "path": str(pictures), "masks": "alpha"}],
                    "captions": {"trigger": "thing", "shuffle_tags": True, "dropout": 0.2},
                    "resolution": 16,
                    "flip": True,
                    "cache": {"folder": str(tmp_path / cache)},
                },
            }
        )

    return make


def needs_of(recipe: Recipe) -> Needs:
    encoders = recipe.model.load(Precision.float32, torch.device("cpu")).encoders()
    examples = scan(recipe.data.parts, recipe.data.limits).accepted
    return Needs(examples=examples, settings=recipe.data, encoders=encoders, seeds=Seeds(recipe.seed))


def filled(recipe: Recipe) -> CacheReport:
    needs = needs_of(recipe)
    return fill_cache(needs.examples, needs.settings, needs.encoders, needs.seeds)


def contents(recipe: Recipe) -> dict[str, bytes]:
    """Every entry, byte for byte."""
    found: dict[str, bytes] = {}
    for folder in sorted(file.parent for file in recipe.data.cache.folder.rglob("identity.txt")):
        store = ShardStore(folder)
        for key in store.keys():  # noqa: SIM118  it is no mapping
            content = store.get(key)
            assert content is not None
            found[key] = content
    return found


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one_process(recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data")
    # Otherwise the first worker that is up may have done everything before the second one is.
    monkeypatch.setattr(data.DataContext.get_current(), "wait_for_min_actors_s", 300)
    monkeypatch.setattr(ray_cache, "_LOCAL_MEMORY", 100 * 1024 * 1024)
    monkeypatch.setattr(ray_cache, "_LEAST_A_TASK", 2)  # several tasks, so that both workers have some
    plain, cluster = recipe_of("plain"), recipe_of("cluster")
    expected = filled(plain)
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    workers: set[str] = set()
    add = ray_cache._Tally.add  # pyright: ignore[reportPrivateUsage]

    def counting(self: Any, answer: dict[str, Any]) -> None:
        workers.add(answer["worker"])
        add(self, answer)

    monkeypatch.setattr("trainer.ray_cache._Tally.add", counting)
    report = fill_cache_with_ray(cluster, needs_of(cluster), tell, workers=2)
    assert report == expected
    assert len(workers) == 2
    assert report.encoded_pictures == 12
    assert contents(cluster) == contents(plain)
    assert ("encoding pictures", 12, 12) in told
    assert any(what == "encoding captions" and done == total for what, done, total in told)
    assert not ray.is_initialized()

    def never(_workers: int | None) -> Any:
        raise AssertionError("Ray was started although nothing is missing")

    monkeypatch.setattr(ray_cache, "_ray", never)
    assert fill_cache_with_ray(cluster, needs_of(cluster), workers=2).reused_pictures == 12


def test_without_ray_the_message_says_what_to_install(recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = recipe_of("cache")
    with pytest.raises(TrainerError, match="Ray, which is not installed") as error:
        fill_cache_with_ray(recipe, needs_of(recipe))
    assert "sd-trainer[ray]" in str(error.value.mend)


def answer_of(worker: Worker, task: dict[str, Any]) -> dict[str, Any]:
    return json.loads(worker({"task": [json.dumps({"pictures": [], "words": [], **task})]})["answer"][0])


def raised(answer: dict[str, Any]) -> TrainerError:
    with pytest.raises(TrainerError) as error:
        ray_cache._Tally(1, 1, None).add(answer)  # pyright: ignore[reportPrivateUsage]
    return error.value


def test_an_error_of_a_worker_reaches_the_person_as_it_is(recipe_of: RecipeOf, pictures: Path) -> None:
    recipe = recipe_of("cache")
    needs = needs_of(recipe)
    works = list(needs.plan(ray_cache.Share()).works(torch.arange(1).numpy(), lambda keys: [False] * len(keys)))
    tasks = {"pictures": [ray_cache._as_json(work) for work in works]}  # pyright: ignore[reportPrivateUsage]
    Image.new("RGB", (16, 16), "black").save(pictures / works[0].example.name)
    worker = Worker(recipe.model_dump_json(), str(Path.cwd()), __version__)
    error = raised(answer_of(worker, tasks))
    assert type(error) is DataError
    assert "changed" in error.what
    assert works[0].example.name in str(error.where)
    assert error.mend


def test_a_worker_that_is_given_a_task_again_makes_only_what_is_missing(recipe_of: RecipeOf) -> None:
    recipe = recipe_of("cache")
    needs = needs_of(recipe)
    works = list(needs.plan(ray_cache.Share()).works(torch.arange(3).numpy(), lambda keys: [False] * len(keys)))
    task = {
        "pictures": [ray_cache._as_json(work) for work in works],  # pyright: ignore[reportPrivateUsage]
        "words": [list(work) for work in needs.texts()[:3]],
    }
    count = sum(len(work.keys) for work in works)

    def answer() -> tuple[int, int]:
        worker = Worker(recipe.model_dump_json(), str(Path.cwd()), __version__)
        found = answer_of(worker, task)
        return found["pictures"], found["words"]

    assert answer() == (count, 3)
    before = contents(recipe)
    assert answer() == (0, 0)
    folder = needs.caches()[0].folder
    (shard,) = folder.glob("shard-*.arrow")
    journal = needs.caches()[0].journal()
    journal.append({key: before[key] for key in works[0].keys})
    journal.leave()  # by a worker that was killed
    shard.unlink()
    assert answer() == (count - len(works[0].keys), 0)
    assert contents(recipe) == before


def test_a_worker_of_another_version_is_refused(recipe_of: RecipeOf) -> None:
    worker = Worker(recipe_of("cache").model_dump_json(), str(Path.cwd()), "0.0.0")
    assert "0.0.0" in raised(answer_of(worker, {})).what


def test_a_worker_that_does_not_see_the_folder_says_so(recipe_of: RecipeOf, tmp_path: Path) -> None:
    worker = Worker(recipe_of("cache").model_dump_json(), str(tmp_path / "elsewhere"), __version__)
    error = raised(answer_of(worker, {}))
    assert "cannot enter the folder" in error.what
    assert "share" in str(error.mend)


def test_every_kind_of_error_comes_back_as_its_own_kind() -> None:
    for kind in (DataError, NonFiniteError, TrainerError):
        answer = {"error": kind.__name__, "what": "what", "where": None, "mend": "mend"}
        assert type(raised(answer)) is kind


def test_what_a_worker_is_given_survives_the_way() -> None:
    example = Example(
        source=2, locator="caf\udce9.png", name="caf\\udce9.png", key="ab" * 32, size=Size(30, 20), captions=("words",),
        repeats=3, weight=0.5, mask="m\udce9.png", mask_key="cd" * 32,
    )  # fmt: skip
    work = PictureWork(example=example, bucket=Bucket(24, 16), cuts=(Cut(), Cut(True, 0.25)), keys=("k", "l"))
    text = json.dumps(ray_cache._as_json(work))  # pyright: ignore[reportPrivateUsage]
    assert text.isascii()
    again = ray_cache._picture_work(json.loads(text))  # pyright: ignore[reportPrivateUsage]
    assert (again.bucket, again.cuts, again.keys) == (work.bucket, work.cuts, work.keys)
    for name in ("source", "locator", "name", "key", "size", "mask", "mask_key"):
        assert getattr(again.example, name) == getattr(example, name)
