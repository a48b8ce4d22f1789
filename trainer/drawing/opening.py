"""A recipe, a run or a file -> a model with what was trained for it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.adapters.attaching import Acting, attach_adapter
from trainer.adapters.attaching_words import attach_words
from trainer.core.device import Precision, pick_device
from trainer.core.errors import RecipeError
from trainer.core.files import digest_of
from trainer.core.log import logger
from trainer.core.run_folder import RunFolder
from trainer.core.seeds import Seeds
from trainer.core.tensors import is_pickle, read_header
from trainer.drawing.bases import base_for, words_of
from trainer.families import AnyFamily
from trainer.families.auto import Auto
from trainer.families.model import DiffusionModel
from trainer.loop.checkpoints import Checkpoints
from trainer.recipe.reading import read_recipe
from trainer.recipe.recipe import Recipe
from trainer.weights.adapter_digests import digest_of_adapter
from trainer.weights.embeddings import Embedding, read_embedding
from trainer.weights.reading import read_adapter
from trainer.weights.recognising import kind_of


def open_for_drawing(source: Path, base: str, strength: float) -> tuple[DiffusionModel, int]:
    """The model that `source` means, its adapter acting with `strength`, and the resolution it was trained at.

    Arguments and errors are those of `open_drawable` and of `Drawable.set_strength`.
    """
    drawable = open_drawable(source, base)
    drawable.set_strength(strength)
    return drawable.model, drawable.resolution


@dataclass(slots=True, kw_only=True)
class Drawable:
    """A model with what was trained for it, which acts as strongly as is said."""

    model: DiffusionModel
    resolution: int  # pixels a side that it was trained at
    name: str  # of the adapter; "" where there is none
    identity: str  # changes when anything in the adapter does; "" where there is none
    base_name: str = ""  # without folders
    file: Path | None = None  # that other programs could load
    acting: Acting | None = None  # what was trained, where it lies beside the base
    words_change: bool = False  # with the adapter, words mean something else
    trained: AnyFamily | None = None  # the whole model that a run has made
    base: AnyFamily | None = None  # what that run began with
    precision: Precision = Precision.float32
    shows_base: bool = False  # of a whole model: what began is loaded

    def set_strength(self, strength: float) -> None:
        """Let what was trained act `strength` times as much; 0 is the base alone. Only whole models are loaded anew.

        Raises:
            RecipeError: a whole model is asked for something between itself and its base.
        """
        if self.acting is not None:
            self.acting.set_strength(strength)
        if self.trained is None or self.base is None:
            return
        if strength not in (0.0, 1.0):
            raise RecipeError(
                f"A whole model has no strength, and {strength:g} is asked for.",
                where="--strength",
                mend="Leave it out; 0 draws with the base.",
            )
        if self.shows_base != (not strength):
            self.shows_base = not strength
            self.model = (self.base if self.shows_base else self.trained).load(self.precision, pick_device())


def open_drawable(source: Path, base: str) -> Drawable:
    """The model that `source` means, at full strength.

    Args:
        source: a recipe file or a run folder (the result, or else the newest checkpoint, or else the base alone), or a
            file of an adapter, of new words or of a whole model.
        base: the base model of a file that is no whole one.

    Raises:
        TrainerError: there is no such thing, or its parts do not fit.
    """
    if source.suffix == ".safetensors" or is_pickle(source):
        return _of_file(source, base)
    recipe = read_recipe(source / "recipe.yaml" if source.is_dir() else source)
    folder = RunFolder(source.resolve()) if source.is_dir() else RunFolder(recipe.runs / recipe.name)
    result = recipe.export.result(folder.result)
    if not result.exists():
        return _unfinished(recipe, folder)
    if recipe.adapter.makes_model:
        said = {"weights": str(result), "vae": None, "loras": (), "prediction": None, "zero_terminal_snr": None}
        trained = recipe.model.model_copy(update=said)
        return Drawable(
            model=trained.load(recipe.precision, pick_device()),
            resolution=recipe.data.resolution,
            name=recipe.name,
            identity=digest_of_model(result),
            base_name=title_of_weights(recipe.model.weights),
            trained=trained,
            base=recipe.model,
            precision=recipe.precision,
        )
    return open_result(recipe, result)


def open_result(recipe: Recipe, path: Path) -> Drawable:
    """What a run has written of itself for other programs, at its end or on its way, on the run's own base.

    Args:
        recipe: of the run; it makes no whole model.
        path: a file, or a folder where the layout is one.

    Raises:
        TrainerError: it cannot be read, or does not fit the base.
    """
    words = {word: read_embedding(file).embedding for word, file in recipe.adapter.word_files(path).items()}
    return _with_file(base_of(recipe), recipe.data.resolution, path, words, recipe.model.weights)


def _of_file(path: Path, base: str) -> Drawable:
    header = read_header(path)
    if kind_of(list(header.tensors)) == "checkpoint":
        model = Auto(weights=str(path)).load(Precision.float32, pick_device())
        return Drawable(
            model=model, resolution=model.resolution, name="", identity="", base_name=title_of_weights(str(path))
        )
    model = base_for(header, path, base).load(Precision.float32, pick_device())
    resolution = header.metadata.get("modelspec.resolution", "").split("x")[0]
    pixels = int(resolution) if resolution.isdigit() else model.resolution
    return _with_file(model, pixels, path, words_of(path, header), base)


def _with_file(
    model: DiffusionModel, resolution: int, path: Path, words: Mapping[str, Embedding], base: str
) -> Drawable:
    """An adapter, new words, or both, attached."""
    acting: list[Acting] = []
    of_text = bool(words)
    if path.is_dir() or kind_of(list(read_header(path).tensors)) != "textual inversion":
        state = read_adapter(path, model.naming).state
        of_text = of_text or any(layer.partition(".")[0] in model.text_parts.values() for layer in state.layers())
        acting.append(attach_adapter(model, state))
    if words:
        acting.append(attach_words(model, words))
    return Drawable(
        model=model,
        resolution=resolution,
        name=path.stem if path.is_file() else path.name,
        identity=digest_of_adapter(path),
        base_name=title_of_weights(base),
        file=path if path.is_file() else None,
        acting=_Together(acting),
        words_change=of_text,
    )


def _unfinished(recipe: Recipe, folder: RunFolder) -> Drawable:
    """What there is of a run without a result: its newest checkpoint, or its base."""
    model = base_of(recipe)
    base_name = title_of_weights(recipe.model.weights)
    drawable = Drawable(model=model, resolution=recipe.data.resolution, name="", identity="", base_name=base_name)
    state = Checkpoints(folder, recipe.checkpoints).newest()
    if state is None:
        logger.info("There is nothing trained yet: drawing with the base model.")
        return drawable
    logger.info("This run is not finished: drawing with its checkpoint after step %d.", state.step)
    trainable = recipe.adapter.attach(model, Seeds(recipe.seed))
    trainable.load_state(state.trained)
    drawable.name, drawable.acting, drawable.words_change = recipe.name, trainable, recipe.adapter.trains_words
    drawable.identity = Checkpoints(folder, recipe.checkpoints).digest(state.step)
    return drawable


def base_of(recipe: Recipe) -> DiffusionModel:
    """What a run trains on, predicting what the recipe says; no network is loaded before it is asked for."""
    model = recipe.model.load(recipe.precision, pick_device())
    model.prediction = recipe.objective.prediction or model.prediction
    return model


def title_of_weights(weights: str) -> str:
    """What may be published of where a base lies: the last part of a path or a hub's name, without the suffix."""
    last = weights.replace("\\", "/").rstrip("/").rpartition("/")[2].partition("@")[0]
    return last.removesuffix(".safetensors")


def digest_of_model(path: Path) -> str:
    """SHA-256 of a whole model on disk: of a file, or of the names and contents of a folder's files."""
    if path.is_file():
        return digest_of(path)
    parts = [f"{file.relative_to(path).as_posix()}:{digest_of(file)}" for file in sorted(path.rglob("*.*"))]
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class _Together:
    """Several things that act."""

    parts: Sequence[Acting]

    def set_strength(self, strength: float) -> None:
        """See `Acting`."""
        for part in self.parts:
            part.set_strength(strength)
