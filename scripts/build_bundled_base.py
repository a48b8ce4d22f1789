"""Rebuild the small base model that comes with the package, from nothing or from an earlier base.

Usage:
    python scripts/build_bundled_base.py all --work base_work
    python scripts/build_bundled_base.py train --work base_work --minutes 90 --start-from base_work/base
    python scripts/build_bundled_base.py score --work base_work --base trainer/families/bundled_base

The stages, in order: fetch, render, tokenizer, autoencoder, latents, train, export, score. Each reads what the
stages before it left in the work folder. `scripts/bundled_base/README.md` tells the sources and the method.
"""

import argparse
import multiprocessing
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the workshop is no installed package

from bundled_base.autoencoder import AutoencoderPlan, train_autoencoder
from bundled_base.corpus import render_corpus
from bundled_base.corpus_files import read_entries, read_pictures, write_corpus
from bundled_base.denoiser import Places, train_member
from bundled_base.export import export_pipeline
from bundled_base.latents import encode_pictures
from bundled_base.networks import TOKENIZER_FILES, load_pipeline
from bundled_base.sampling import SamplingPlan
from bundled_base.scoring import pick_prompts, score_base
from bundled_base.sources import draw_avatars, fetch_merges, fetch_pictures
from bundled_base.tokenizer import caption_words, common_words, read_merges, write_tokenizer
from bundled_base.training import Plan

PICTURE_SIZE = 64


def read_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--work", type=Path, default=Path("bundled_base_work"), help="folder of all that is made")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, default=110, help="of training text encoder and U-Net")
    parser.add_argument("--words-minutes", type=float, default=5, help="text encoder alone, before these")
    parser.add_argument("--autoencoder-minutes", type=float, default=20)
    parser.add_argument("--steps", type=int, default=10**9, help="at most so many steps of either training")
    parser.add_argument("--batch", type=int, default=32, help="latents per process and step")
    parser.add_argument("--processes", type=int, default=2, help="single-thread processes, on a CPU only")
    parser.add_argument("--port", type=int, default=29533, help="where the processes meet")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--grid-steps", type=int, default=12, help="sampler steps of the grids on the way")
    parser.add_argument("--start-from", type=Path, help="a finished base whose parts are taken over")
    parser.add_argument("--base", type=Path, help="the base to score; the exported one where none is named")
    parser.add_argument("--prompts", type=int, default=200, help="how many captions the score asks for")
    parser.add_argument("--core", action="store_true", help="score on captions of core_labels.txt alone")
    parser.add_argument("--grid", type=Path, help="where the score leaves its grid")
    parser.add_argument("--guidance", type=float, default=4.0, help="of the score's pictures")
    return parser.parse_args(words)


def fetch(arguments: argparse.Namespace) -> None:
    """Fetch pictures and merges from npm and PyPI."""
    fetch_pictures(arguments.work / "npm")
    fetch_merges(arguments.work / "merges")


def render(arguments: argparse.Namespace) -> None:
    """Render the corpus."""
    work: Path = arguments.work
    draw_avatars(work / "npm", work / "avatars")
    entries, pictures = render_corpus(work / "npm", work / "avatars", PICTURE_SIZE)
    write_corpus(work / "corpus", entries, pictures)


def tokenizer(arguments: argparse.Namespace) -> None:
    """Write the reduced tokenizer, or take over that of an earlier base."""
    work: Path = arguments.work
    if arguments.start_from is not None:
        (work / "tokenizer").mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            shutil.copyfile(arguments.start_from / "tokenizer" / name, work / "tokenizer" / name)
        return
    words = caption_words(read_entries(work / "corpus")) | common_words()
    size = write_tokenizer(work / "tokenizer", read_merges(work / "merges" / "merges_full.txt"), words)
    print(f"tokenizer: {size} entries", flush=True)


def autoencoder(arguments: argparse.Namespace) -> None:
    """Train the autoencoder, or take over that of an earlier base."""
    work: Path = arguments.work
    if arguments.start_from is not None:
        shutil.copytree(arguments.start_from / "vae", work / "autoencoder", dirs_exist_ok=True)
        return
    plan = AutoencoderPlan(arguments.autoencoder_minutes, arguments.batch, max_steps=arguments.steps)
    trained = train_autoencoder(read_pictures(work / "corpus"), plan, torch.device(arguments.device))
    trained.save_pretrained(work / "autoencoder")


def latents(arguments: argparse.Namespace) -> None:
    """Encode the corpus."""
    work: Path = arguments.work
    trained = AutoencoderKL.from_pretrained(work / "autoencoder", torch_dtype=torch.float32)
    encoded = encode_pictures(trained, read_pictures(work / "corpus"), torch.device(arguments.device))
    np.save(work / "corpus" / "latents.npy", encoded)


def train(arguments: argparse.Namespace) -> None:
    """Train text encoder and U-Net; a second call with more minutes goes on where the first one ended."""
    work: Path = arguments.work
    output = work / "training"
    output.mkdir(parents=True, exist_ok=True)
    places = Places(work / "corpus", work / "tokenizer", work / "autoencoder", arguments.start_from, output)
    plan = Plan(
        arguments.minutes,
        arguments.batch,
        arguments.rate,
        words_minutes=arguments.words_minutes,
        max_steps=arguments.steps,
        grid_steps=arguments.grid_steps,
    )
    size = arguments.processes if arguments.device == "cpu" else 1
    if size == 1:
        train_member(0, 1, arguments.port, places, plan, arguments.device)
        return
    context = multiprocessing.get_context("spawn")
    members = [
        context.Process(target=train_member, args=(rank, size, arguments.port, places, plan, arguments.device))
        for rank in range(size)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join()
    if any(member.exitcode for member in members):
        raise SystemExit("a training process failed; its message is above")


def export(arguments: argparse.Namespace) -> None:
    """Write the finished base in float16."""
    work: Path = arguments.work
    pipeline = load_pipeline(work / "training" / "checkpoint")
    size = export_pipeline(pipeline, work / "tokenizer", work / "base")
    print(f"base: {size / 1e6:.1f} MB in {work / 'base'}", flush=True)


def score(arguments: argparse.Namespace) -> None:
    """Score the exported base and leave a grid of corpus pictures over drawn ones."""
    work: Path = arguments.work
    base = arguments.base or work / "base"
    corpus = work / "corpus"
    plan = SamplingPlan(guidance=arguments.guidance, seed=9)
    entries = read_entries(corpus)
    indices = pick_prompts(entries, arguments.prompts, arguments.core)
    result, grid = score_base(base, entries, read_pictures(corpus), indices, plan)
    grid.save(arguments.grid or work / "score_grid.png")
    print(result, flush=True)


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    stage.__name__: stage for stage in (fetch, render, tokenizer, autoencoder, latents, train, export, score)
}


def main() -> None:
    """Run one stage, or all of them in order."""
    arguments = read_arguments()
    for name in STAGES if arguments.stage == "all" else [arguments.stage]:
        print(f"== {name}", flush=True)
        STAGES[name](arguments)


if __name__ == "__main__":
    main()
