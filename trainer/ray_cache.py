"""The cache, filled by a cluster: Ray Data hands out the work, and each worker encodes as `trainer cache` does."""

import json
import logging
import os
import platform
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice, starmap
from pathlib import Path
from typing import Any, Final

from trainer import __version__
from trainer.core.device import pick_device
from trainer.core.errors import CheckpointError, DataError, NonFiniteError, RecipeError, TrainerError, WeightsError
from trainer.data.buckets import Bucket
from trainer.data.cache import TensorCache
from trainer.data.cropping import Cut
from trainer.data.decoder import PictureWork
from trainer.data.encoding import Encoding, WordsWork
from trainer.data.example import Example, Progress, Size
from trainer.data.filling import CacheReport, Checked, Needs, caches_of, encode_all, encoding_of, missing_words
from trainer.data.planning import Share
from trainer.recipe.recipe import Recipe

_MOST_A_TASK: Final = 512  # pictures or texts: about a shard, and what is done again when a worker dies
_LEAST_A_TASK: Final = 16
_TASKS_A_WORKER: Final = 8  # or more: so that quick workers do not wait for slow ones at the end
_MOST_AT_ONCE: Final = 200_000  # works that wait in Ray's memory, some hundred bytes each
_LOCAL_MEMORY: Final = 256 * 1024 * 1024  # bytes for Ray's objects where no cluster is there; only tasks lie in it

_ERRORS: Final = {
    kind.__name__: kind
    for kind in (TrainerError, CheckpointError, DataError, NonFiniteError, RecipeError, WeightsError)
}

Task = dict[str, Any]
"""What a worker is given, as JSON: {"pictures": [...], "words": [...]}."""

Answer = dict[str, Any]
"""What a worker answers, as JSON: {"worker": "host 123", "pictures": 12, "words": 3}, or {"error": ..., ...}."""


def fill_cache_with_ray(
    recipe: Recipe, needs: Needs, progress: Progress | None = None, *, workers: int | None = None
) -> CacheReport:
    """Every picture and every text that a run of `recipe` can ask for is in the cache: same keys, same bytes as always.

    Uses the Ray that this process is connected to, or the cluster that Ray finds (RAY_ADDRESS), or else starts one of
    this machine alone. Every machine must see recipe, pictures, weights and cache under the same paths.

    Args:
        recipe: what the workers open the model of.
        needs: of the same recipe, on its account.
        progress: told how far it is.
        workers: how many encode at once; by default one a GPU, or one a processor where there is no GPU.

    Raises:
        TrainerError: Ray is not installed, or the cluster fails; or what `fill_cache` raises, from any worker.
    """
    pictures, words = needs.caches()
    for cache in (pictures, words):
        cache.take_up_journals()
    plan = needs.plan(Share())

    def checking(done: int, total: int) -> None:
        if progress is not None:
            progress("checking the cache", done, total)

    positions, picture_counts = plan.missing(Checked(pictures), checking)
    texts, word_counts = missing_words(needs.texts(), Checked(words), Share())
    tally = _Tally(picture_counts.missing, len(texts), progress)
    if picture_counts.missing or texts:
        with _ray(workers) as cluster:
            crew = _Crew.of(cluster, workers)
            size = _task_size(len(positions) + len(texts), crew.workers)
            tasks = _tasks(plan.works(positions, pictures.known), texts, size)
            while some := list(islice(tasks, max(1, _MOST_AT_ONCE // size))):
                with closing(crew.answers(cluster, recipe, some)) as answers:
                    for answer in answers:
                        tally.add(answer)
        for cache in (pictures, words):
            cache.refresh()
            cache.save_index()
    return CacheReport(
        encoded_pictures=tally.pictures,
        reused_pictures=picture_counts.needed - tally.pictures,
        encoded_captions=tally.words,
        reused_captions=word_counts.needed - tally.words,
    )


@dataclass(frozen=True, slots=True)
class _Crew:
    """The workers of a cluster."""

    workers: int
    gpus: int  # each worker's

    @classmethod
    def of(cls, cluster: Any, workers: int | None) -> "_Crew":
        """As many as are asked for, or as the cluster has room for."""
        room = cluster.cluster_resources()
        gpus = int(room.get("GPU", 0))
        return cls(workers or gpus or max(1, int(room.get("CPU", 1))), 1 if gpus else 0)

    def answers(self, cluster: Any, recipe: Recipe, tasks: Sequence[Task]) -> Generator[Answer, None, None]:
        """What the workers answer, in the order in which they finish.

        Raises:
            TrainerError: a worker was lost, or the cluster fails.
        """
        import pyarrow
        import ray.data

        # Only what is ASCII: a file's name may hold bytes that are no UTF-8, which JSON can say and Arrow cannot.
        tables = [pyarrow.table({"task": [json.dumps(task)]}) for task in tasks]
        answers = ray.data.from_arrow(tables).map_batches(
            Worker,
            fn_constructor_args=(recipe.model_dump_json(), str(Path.cwd()), __version__),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(tasks))),
            num_cpus=1,
            num_gpus=self.gpus or None,
        )
        try:
            for batch in answers.iter_batches(batch_size=1, batch_format="numpy"):
                yield json.loads(str(batch["answer"][0]))
        except cluster.exceptions.RayError as error:
            raise TrainerError(
                f"A worker of the Ray cluster failed: {str(error).strip().splitlines()[-1]}",
                mend="Look into Ray's own log. What was encoded is in the cache: start again to go on.",
            ) from error


class Worker:
    """One of the cluster's processes: opens the recipe's model when its first task comes, and encodes."""

    def __init__(self, recipe: str, folder: str, version: str) -> None:
        """Nothing is opened yet: an error here would lose its message.

        Args:
            recipe: as JSON.
            folder: from which the recipe's relative paths start.
            version: of the program that hands out the work.
        """
        self._recipe, self._folder, self._version = recipe, folder, version
        self._opened: tuple[Encoding, tuple[TensorCache, TensorCache]] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Do the one task of a batch: its entries are on the disk when this returns.

        Returns:
            How many pictures and words were encoded, or the error that a person can mend; as JSON.
        """
        try:
            answer = self._do(json.loads(str(batch["task"][0])))
        except TrainerError as error:
            answer = {"error": type(error).__name__, "what": error.what, "where": error.where, "mend": error.mend}
        return {"answer": [json.dumps(answer)]}

    def _do(self, task: Task) -> Answer:
        encoding, caches = self._open()
        for cache in caches:
            cache.take_up_journals()  # of a worker that was killed at this very task
        works = (_without_known(_picture_work(content), caches[0]) for content in task["pictures"])
        texts = (text for text in starmap(WordsWork, task["words"]) if not caches[1].holds(text.key))
        pictures, words = encode_all(encoding, caches, (work for work in works if work.keys), texts)
        return {"worker": f"{platform.node()} {os.getpid()}", "pictures": pictures, "words": words}

    def _open(self) -> tuple[Encoding, tuple[TensorCache, TensorCache]]:
        if self._opened is None:
            if self._version != __version__:
                raise TrainerError(
                    f"A worker has version {__version__} of this program, and this machine {self._version}.",
                    where=platform.node(),
                    mend="Install the same version on every machine of the cluster.",
                )
            try:
                os.chdir(self._folder)
            except OSError as error:
                raise TrainerError(
                    f"A worker cannot enter the folder {self._folder}: {error.strerror}.",
                    where=platform.node(),
                    mend="Recipe, pictures, weights and cache must lie on a file system that all machines share.",
                ) from error
            recipe = Recipe.model_validate_json(self._recipe)
            encoders = recipe.model.load(recipe.precision, pick_device()).encoders()
            self._opened = encoding_of(recipe.data, encoders), caches_of(recipe.data, encoders)
        return self._opened


class _Tally:
    """What the workers have done."""

    def __init__(self, pictures: int, words: int, progress: Progress | None) -> None:
        self.pictures = self.words = 0
        self._totals = pictures, words
        self._progress = progress

    def add(self, answer: Answer) -> None:
        """Count what a worker has done.

        Raises:
            TrainerError: the worker could not do it.
        """
        if "error" in answer:
            kind = _ERRORS.get(answer["error"], TrainerError)
            raise kind(answer["what"], where=answer["where"], mend=answer["mend"])
        self.pictures += answer["pictures"]
        self.words += answer["words"]
        if self._progress is not None and self._totals[0]:
            self._progress("encoding pictures", self.pictures, self._totals[0])
        if self._progress is not None and self._totals[1]:
            self._progress("encoding captions", self.words, self._totals[1])


def _tasks(works: Iterator[PictureWork], texts: Iterable[WordsWork], size: int) -> Iterator[Task]:
    """Parts of the work, each as large as one task shall be."""
    while some := list(islice(works, size)):
        yield {"pictures": [_as_json(work) for work in some], "words": []}
    waiting = iter(texts)
    while group := list(islice(waiting, size)):
        yield {"pictures": [], "words": [list(work) for work in group]}


def _task_size(works: int, workers: int) -> int:
    size = works // (workers * _TASKS_A_WORKER)
    return min(max(size, _LEAST_A_TASK), _MOST_A_TASK) // _LEAST_A_TASK * _LEAST_A_TASK


def _as_json(work: PictureWork) -> dict[str, Any]:
    """What a worker needs; the words of the picture are not among it."""
    example = asdict(replace(work.example, captions=(), class_words=""))
    return {"example": example, "bucket": work.bucket, "cuts": work.cuts, "keys": work.keys}


def _picture_work(content: dict[str, Any]) -> PictureWork:
    known: dict[str, Any] = {**content["example"], "size": Size(*content["example"]["size"]), "captions": ()}
    return PictureWork(
        example=Example(**known),
        bucket=Bucket(*content["bucket"]),
        cuts=tuple(Cut(*cut) for cut in content["cuts"]),
        keys=tuple(content["keys"]),
    )


def _without_known(work: PictureWork, cache: TensorCache) -> PictureWork:
    """The same without what is there and sound; to know of it is not enough, for it may be what shall be mended."""
    absent = [(cut, key) for cut, key in zip(work.cuts, work.keys, strict=True) if not cache.holds(key)]
    return replace(work, cuts=tuple(cut for cut, _ in absent), keys=tuple(key for _, key in absent))


@contextmanager
def _ray(workers: int | None) -> Generator[Any, None, None]:  # Any: a module, whose types are not complete
    """Ray, connected; what was not connected before is left again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise it tells its makers that and how it is used
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise TrainerError(
            "The engine `ray` needs Ray, which is not installed.",
            where="--engine ray",
            mend="Install it with: pip install 'sd-trainer[ray]'; or leave --engine out.",
        ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of every step that it plans
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours is shown
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, workers)
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: Any, workers: int | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:  # there is no cluster, so this machine is one
        ray.init(
            address="local",
            num_cpus=workers,
            object_store_memory=_LOCAL_MEMORY,
            include_dashboard=False,
            **quiet,
        )
