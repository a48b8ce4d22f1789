"""The training of text encoder and U-Net as one member of a team sees it."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from bundled_base.batches import BatchMaker, build_corpus
from bundled_base.corpus_files import read_entries
from bundled_base.export import export_pipeline
from bundled_base.networks import assemble_pipeline, build_text_encoder, build_unet, load_pipeline
from bundled_base.parallel import Team, join_team
from bundled_base.sampling import GRID_PROMPTS, SamplingPlan, picture_grid, sample_pictures
from bundled_base.student import Student
from bundled_base.training import Plan, Training, train
from bundled_base.words import teach_words


@dataclass(frozen=True)
class Places:
    """The folders that the training reads and writes."""

    corpus: Path  # entries.json, latents.npy
    tokenizer: Path
    autoencoder: Path
    start_from: Path | None  # a finished base to go on from
    output: Path


def _fresh_student(places: Places, code_size: int) -> Student:
    torch.manual_seed(1)  # every member starts from the same weights
    if places.start_from is not None:
        pipeline = load_pipeline(places.start_from)
        return Student(pipeline.unet, pipeline.text_encoder, code_size)
    tokenizer = CLIPTokenizer.from_pretrained(places.tokenizer)
    return Student(build_unet(), build_text_encoder(tokenizer), code_size)


def train_member(rank: int, team_size: int, port: int, places: Places, plan: Plan, device: str) -> None:
    """Train as one of the team's processes; the leader leaves a diffusers folder `checkpoint` and grids."""
    if device == "cpu":
        torch.set_num_threads(1)
    team: Team = join_team(rank, team_size, port)
    tokenizer = CLIPTokenizer.from_pretrained(places.tokenizer)
    entries = read_entries(places.corpus)
    corpus = build_corpus(entries, np.load(places.corpus / "latents.npy"))
    student = _fresh_student(places, corpus.codes.shape[1]).to(device)
    training = Training(student, plan, team, places.output)
    training.resume()
    # a resumed run must not see the old batches again, hence the step in the seed
    maker = BatchMaker(corpus, tokenizer, seed=1000 * training.progress.steps + rank)

    if training.progress.steps == 0:
        teach_words(training, maker, plan.words_minutes, plan.max_steps)

    def on_checkpoint(current: Training) -> None:
        write_checkpoint(current, places)

    train(training, maker, on_checkpoint)


def write_checkpoint(training: Training, places: Places) -> None:
    """Write the running average as a diffusers folder in float16, and a grid of what it draws."""
    averaged = copy.deepcopy(training.student)
    averaged.load_state_dict({**training.student.state_dict(), **training.average})
    averaged.eval().cpu()
    autoencoder = AutoencoderKL.from_pretrained(places.autoencoder, torch_dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(places.tokenizer)
    pipeline = assemble_pipeline(autoencoder, averaged.text_encoder, tokenizer, averaged.unet)
    with torch.random.fork_rng():
        pictures = sample_pictures(pipeline, GRID_PROMPTS, SamplingPlan(steps=training.plan.grid_steps))
    grid = picture_grid(pictures, 8, GRID_PROMPTS)
    grid.save(places.output / f"grid_{training.progress.samples:08d}.png")
    export_pipeline(pipeline, places.tokenizer, places.output / "checkpoint")
