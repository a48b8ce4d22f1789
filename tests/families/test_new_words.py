"""New words in texts: found, counted, cut and encoded as programs that load embeddings do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.adapters.attaching_words import attach_words
from trainer.adapters.textual_inversion import NewWord, TextualInversion
from trainer.core.device import Precision
from trainer.core.errors import RecipeError, WeightsError
from trainer.core.seeds import Seeds
from trainer.families.model import DiffusionModel
from trainer.families.sd1 import Sd1
from trainer.families.sd2 import Sd2
from trainer.families.sdxl import Sdxl
from trainer.families.spelling import Spelling
from trainer.weights.embeddings import Embedding, export_embedding
from trainer.weights.export import ExportSettings

CPU = torch.device("cpu")
WORD = "<blob>"


def opened(folder: Path, kind: Any = Sd1, **settings: Any) -> DiffusionModel:
    return kind(weights=str(folder), **settings).load(Precision.float32, CPU)


def an_embedding(count: int, *widths: int) -> Embedding:
    chance = torch.Generator().manual_seed(4)
    parts = ("text_encoder", "text_encoder_2")
    return Embedding(
        {part: torch.randn(count, width, generator=chance) for part, width in zip(parts, widths, strict=False)}
    )


def test_words_are_found_where_they_stand_by_themselves() -> None:
    spelling = Spelling({"<blob>": 2, "zwx": 1, "zwx-b": 3}, 100)
    found = [(p.text, p.start, p.tokens) for p in spelling.pieces("a <BLOB>,zwx-b and zwx; zwxy <blob>")]
    assert found == [
        ("a ", 0, None),
        ("<BLOB>", 2, range(100, 102)),
        (",", 8, None),
        ("zwx-b", 9, range(103, 106)),
        (" and ", 14, None),
        ("zwx", 19, range(102, 103)),
        ("; zwxy ", 22, None),
        ("<blob>", 29, range(100, 102)),
    ]
    assert [piece.text for piece in spelling.pieces("nothing new")] == ["nothing new"]
    assert spelling.pieces("") == []


def test_tokens_between_new_words_are_those_of_the_whole_text(small_model: Path) -> None:
    model = opened(small_model)
    plain = model.vocabulary.tokens("text_encoder", "a red ball (very, small) it's")
    model.vocabulary.add({"<blob>": 3})
    new = [6076, 6077, 6078]
    mixed = model.vocabulary.tokens("text_encoder", "a red <blob>ball (<blob> very,<blob> small) it's")
    assert [token for token in mixed if token < 6076] == plain
    assert [token for token in mixed if token >= 6076] == new * 3
    assert model.count_tokens("a <blob>") == 4
    model.vocabulary.heed(new_words=False)
    assert max(model.vocabulary.tokens("text_encoder", "a <blob>")) < 6076


def test_the_limit_counts_vectors_and_a_word_is_lost_as_a_whole(small_model: Path) -> None:
    model = opened(small_model)
    model.vocabulary.add({"<blob>": 30})
    assert model.lost_words("<blob> <blob>, a") == ""
    assert model.lost_words("<blob> <blob> a <blob>, red") == "<blob>, red"
    long = "é <blob> <blob>" + " red" * 20
    assert model.lost_words(long) == " ".join(["red"] * (model.count_tokens(long) - 75))
    wide = opened(small_model, token_limit=150)
    wide.vocabulary.add({"<blob>": 30})
    assert wide.lost_words("<blob> <blob> a <blob>, red") == ""


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_written_word_means_the_same_to_diffusers(
    family: str, small_model: Path, small_sd2: Path, small_sdxl: Path, tmp_path: Path, pipeline_of: Any
) -> None:
    folder, kind = {"sd1": (small_model, Sd1), "sd2": (small_sd2, Sd2), "sdxl": (small_sdxl, Sdxl)}[family]
    widths = (16, 12) if family == "sdxl" else (16,)
    embedding = an_embedding(3, *widths)
    path = export_embedding(tmp_path / "w.safetensors", embedding, {}, ExportSettings())
    model = opened(folder, kind)
    attach_words(model, {"<blob>": embedding})
    ours = model.encode_words(["a red <blob>, small"])
    pipe = pipeline_of(folder)
    if family == "sdxl":
        from safetensors.torch import load_file

        tensors = load_file(path)
        for key, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
            tokenizer = pipe.tokenizer if key == "clip_l" else pipe.tokenizer_2
            pipe.load_textual_inversion(
                tensors[key],
                token=WORD,
                text_encoder=getattr(pipe, part),
                tokenizer=tokenizer,
            )
    else:
        pipe.load_textual_inversion(path, token=WORD)
    theirs = pipe.encode_prompt(
        prompt="a red <blob>, small", device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(ours.tokens, theirs[0], atol=1e-5, rtol=1e-4)


def test_a_start_is_repeated_and_chance_has_the_table_s_spread(small_sdxl: Path) -> None:
    model = opened(small_sdxl, Sdxl)
    words = (NewWord(word="<one>", vectors=5, start="red ball"), NewWord(word="<two>", vectors=60))
    trained = TextualInversion(words=words).attach(model, Seeds(0))
    for part in ("text_encoder", "text_encoder_2"):
        table, rows = model.vocabulary.table(part), trained.state()[f"{part}.words"]
        first, second = model.vocabulary.tokens(part, "red ball")
        assert torch.equal(rows[:5], table[[first, second, first, second, first]])
        assert float(rows[5:].std() / table.std()) == pytest.approx(1.0, abs=0.1)
    assert model.encode_words(["<one>"]).tokens.shape[1] == 77


def test_lengths_go_back_to_those_of_the_model_s_own_words(small_model: Path) -> None:
    model = opened(small_model)
    usual = float(model.vocabulary.table("text_encoder").norm(dim=-1).mean())
    for keep, wanted in ((True, usual), (False, 50 * usual)):
        settings = TextualInversion(words=(NewWord(word="<w>", vectors=2, start="red"),), keep_length=keep)
        trained = settings.attach(model, Seeds(0))
        (rows,) = trained.parameters()
        with torch.no_grad():
            rows.mul_(50 * usual / rows.norm(dim=-1, keepdim=True))
        before = rows.detach().clone()
        for _ in range(100):
            trained.after_step()
        assert rows.norm(dim=-1).tolist() == pytest.approx([wanted] * 2, rel=1e-2)
        torch.testing.assert_close(torch.nn.functional.normalize(rows), torch.nn.functional.normalize(before))


def test_words_of_other_sizes_and_without_room_are_refused(small_model: Path) -> None:
    model = opened(small_model)
    with pytest.raises(WeightsError, match="of other sizes: it has 20, and the model 16"):
        attach_words(model, {"<w>": an_embedding(1, 20)})
    many = TextualInversion(words=(NewWord(word="<a>", vectors=50), NewWord(word="<b>", vectors=40)))
    with pytest.raises(RecipeError, match="90 vectors, and a caption has room for 75"):
        many.check(model)


@pytest.mark.parametrize("word", ["two words", "comma,", "", "tab\t"])
def test_a_word_is_one_word(word: str) -> None:
    with pytest.raises(ValueError, match=r"no spaces|at least 1"):
        NewWord(word=word)


def test_words_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="are the same"):
        TextualInversion(words=(NewWord(word="<blob>"), NewWord(word="Blob")))
