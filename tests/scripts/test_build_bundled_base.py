"""The bundled base can be rebuilt: every stage runs on a handful of drawn pictures, without network or npm."""

import importlib.util
import random
import sys
from argparse import Namespace
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

SCRIPTS = Path(__file__).parents[2] / "scripts"
COLOURS = ("red", "blue", "green")
SHAPES = ("circle", "square")
STYLES = ("noto style", "flat style", "3d style")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_bundled_base", SCRIPTS / "build_bundled_base.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    return script


script = load_script()
# The script puts the workshop on the path. It is no package that a type checker could find from here.
batches = importlib.import_module("bundled_base.batches")
captions = importlib.import_module("bundled_base.captions")
corpus_files = importlib.import_module("bundled_base.corpus_files")
networks = importlib.import_module("bundled_base.networks")
optimization = importlib.import_module("bundled_base.optimization")
scoring = importlib.import_module("bundled_base.scoring")
state = importlib.import_module("bundled_base.state")
tokenizer = importlib.import_module("bundled_base.tokenizer")

Pictures = NDArray[np.uint8]
Corpus = tuple[list[Any], Pictures]


def drawn(colour: str, shape: str, margin: int) -> Pictures:
    picture = Image.new("RGB", (64, 64), "white")
    drawing = ImageDraw.Draw(picture)
    draw: Callable[..., None] = drawing.ellipse if shape == "circle" else drawing.rectangle
    draw((margin, margin, 63 - margin, 63 - margin), fill=colour)
    return np.asarray(picture)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    kinds = list(product(COLOURS, SHAPES, enumerate(STYLES)))
    entries = [captions.Entry(f"{colour} {shape}", (shape,), style, "emoji") for colour, shape, (_, style) in kinds]
    pictures = np.stack([drawn(colour, shape, 8 + 5 * place) for colour, shape, (place, _) in kinds])
    return entries, pictures


@pytest.fixture(scope="module")
def merges_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merges") / "merges_full.txt"
    path.write_text("#version\nr e\nre d</w>\nc i\nci r\nb l\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus, merges_file: Path) -> Path:
    """Return the work folder after every stage but the fetching and rendering."""
    folder = tmp_path_factory.mktemp("work")
    corpus_files.write_corpus(folder / "corpus", *corpus)
    (folder / "merges").mkdir()
    (folder / "merges" / "merges_full.txt").write_bytes(merges_file.read_bytes())
    for stage in ("tokenizer", "autoencoder", "latents", "train", "export", "score"):
        script.STAGES[stage](arguments(folder))
    return folder


def arguments(folder: Path, *more: str) -> Namespace:
    words = ["all", "--work", str(folder), "--processes", "1", "--batch", "4", "--steps", "2", "--prompts", "2"]
    return script.read_arguments([*words, "--grid-steps", "1", *more])


def test_exported_folder_loads_and_draws(work: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(work / "base", dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("red circle, noto style", num_inference_steps=2, return_dict=False)[0][0]
    assert picture.size == (64, 64)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id


def test_exported_folder_is_complete_and_small(work: Path) -> None:
    files = [path for path in (work / "base").rglob("*") if path.is_file()]
    names = {path.name for path in (work / "base" / "tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= names
    assert sum(path.stat().st_size for path in files) < 20e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl"}]
    assert not [path for path in files if path.suffix == ".json" and "_name_or_path" in path.read_text("utf-8")]


def test_training_goes_on_from_its_state(work: Path) -> None:
    script.train(arguments(work, "--steps", "3"))
    found = state.load_state(work / "training")
    assert found is not None
    assert found[1].steps == 3
    assert found[1].samples == 12


def test_start_from_takes_over_the_parts(work: Path, tmp_path: Path) -> None:
    given = arguments(tmp_path, "--start-from", str(work / "base"))
    script.tokenizer(given)
    script.autoencoder(given)
    assert (tmp_path / "tokenizer" / "vocab.json").read_bytes() == (work / "tokenizer" / "vocab.json").read_bytes()
    assert (tmp_path / "autoencoder" / "config.json").exists()


def test_state_survives_the_disk(tmp_path: Path) -> None:
    state.save_state(tmp_path, {"weight": torch.arange(3.0)}, state.Progress(steps=7, samples=9, minutes=1.5))
    found = state.load_state(tmp_path)
    assert found is not None
    assert torch.equal(found[0]["weight"], torch.arange(3.0))
    assert found[1] == state.Progress(7, 9, 1.5)
    assert state.load_state(tmp_path / "elsewhere") is None


def test_kept_words_spell_as_in_the_full_vocabulary(merges_file: Path, tmp_path: Path) -> None:
    merges = tokenizer.read_merges(merges_file)
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    size = tokenizer.write_tokenizer(tmp_path, merges, {"red"})
    kept = tokenizer.read_merges(tmp_path / "merges.txt")
    assert tokenizer.merges_of("red", ranks) == [("r", "e"), ("re", "d</w>")] == kept
    assert size == 2 * 256 + 2 + 2


def test_orthogonalised_matrix_keeps_its_directions() -> None:
    matrix = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optimization.orthogonalise(matrix))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    assert torch.allclose(optimization.orthogonalise(matrix.T), optimization.orthogonalise(matrix).T, atol=1e-5)


def test_timesteps_reach_both_ends() -> None:
    timesteps = batches.draw_timesteps(200, torch.Generator().manual_seed(0))
    assert int(timesteps.min()) < 100
    assert int(timesteps.max()) > 950
    assert float((timesteps >= 350).float().mean()) > 0.7


def test_core_is_drawn_often_people_rarely_and_strange_styles_never() -> None:
    weights = {
        (label, style): captions.sampling_weight(captions.Entry(label, (), style, "emoji"))
        for label in ("red apple", "abacus", "woman juggling")
        for style in ("noto style", "classic style")
    }
    assert weights["red apple", "noto style"] == 8.0
    assert weights["abacus", "noto style"] == 1.0
    assert weights["woman juggling", "noto style"] == 0.2
    assert not any(weight for (_, style), weight in weights.items() if style == "classic style")


def test_captions_name_the_label() -> None:
    rng = random.Random(0)
    entry = captions.Entry("owl", ("bird", "wise"), "flat style", "emoji")
    assert all("owl" in captions.draw_caption(entry, rng) for _ in range(50))


def test_score_of_the_corpus_itself_is_perfect(corpus: Corpus) -> None:
    entries, pictures = corpus
    score = scoring.score_pictures(pictures, entries, entries, pictures)
    assert (score.label_first, score.label_in_ten, score.style_first) == (1.0, 1.0, 1.0)
    assert score.likeness == pytest.approx(1.0, abs=1e-4)


def test_v_target_gives_back_the_clean_latent(corpus: Corpus, work: Path) -> None:
    """Salimans & Ho 2022: x0 = sqrt(a) x_t - sqrt(1 - a) v."""
    latents = np.load(work / "corpus" / "latents.npy")
    maker = batches.BatchMaker(
        batches.build_corpus(corpus[0], latents), CLIPTokenizer.from_pretrained(work / "tokenizer"), seed=0
    )
    batch = maker.draw(8)
    kept = networks.build_scheduler().alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    clean = kept.sqrt() * batch.noisy - (1 - kept).sqrt() * batch.target
    known = torch.from_numpy(latents).float().flatten(0, 1)
    distances = (clean[:, None] - known[None]).abs().flatten(2).amax(-1)
    assert float(distances.amin(1).max()) < 1e-4
