"""BLIP, Florence-2 and Qwen2-VL: small random models of the real classes, from the command line to the files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer.cli.main import run
from trainer.core.device import Precision
from trainer.core.errors import RecipeError, WeightsError
from trainer.data.captioners.blip import Blip
from trainer.data.captioners.language import LanguageModel
from trainer.data.captioners.writing import one_line

CPU = torch.device("cpu")


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Three pictures that differ in shape and in what they show."""
    gradient = Image.linear_gradient("L").resize((48, 30)).convert("RGB")
    return [gradient, Image.new("RGB", (24, 40), "green"), Image.radial_gradient("L").resize((64, 64)).convert("RGB")]


def captions_in(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


def ask(folder: Path, *words: str) -> int:
    return run(["caption", str(folder), *words])


def test_blip_from_the_command_line_to_the_files(gallery: Path, blip_folder: Path) -> None:
    assert ask(gallery, "--captioner", "blip", f"weights={blip_folder}", "tokens=6", "batch=2", "prompt=a") == 0
    written = captions_in(gallery)
    assert set(written) == {"red", "green", "blue"}
    assert all(text.startswith("a") and text.endswith("\n") for text in written.values())
    assert len(set(written.values())) > 1  # the words depend on the picture


def test_blip_says_what_transformers_own_classes_say(blip_folder: Path, pictures: list[Image.Image]) -> None:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    network: Any = BlipForConditionalGeneration.from_pretrained(blip_folder).eval()
    processor: Any = BlipProcessor.from_pretrained(blip_folder)
    for prompt in ("", "a photograph"):
        says = Blip(weights=str(blip_folder), prompt=prompt, tokens=5, beams=2).open(CPU)
        for picture in pictures:
            inputs = processor(images=picture, text=prompt or None, return_tensors="pt")
            tokens = network.generate(**inputs, num_beams=2, max_new_tokens=5)
            assert says([picture], ["a.png"]) == processor.batch_decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("which", ["blip", "florence", "qwen"])
def test_a_batch_says_what_each_picture_says_alone(
    which: str, pictures: list[Image.Image], request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(f"{which}_folder"))
    settings: dict[str, Any] = {"weights": folder, "tokens": 8, "precision": "float32"}
    captioner = Blip(**settings) if which == "blip" else LanguageModel(**settings)
    says = captioner.open(CPU)
    together = says(pictures, ["a", "b", "c"])
    assert together == [text for picture in pictures for text in says([picture], ["a"])]
    assert len(set(together)) > 1


@pytest.mark.parametrize("which", ["florence", "qwen"])
def test_language_models_from_the_command_line_to_the_files(
    gallery: Path, which: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"{which}_folder")
    assert ask(gallery, "--captioner", "language", f"weights={folder}", "tokens=6", "precision=float32", "batch=2") == 0
    written = captions_in(gallery)
    assert set(written) == {"red", "green", "blue"}
    assert all(text.strip().isalpha() for text in written.values()), written


def test_florence_says_what_transformers_own_classes_say(florence_folder: Path, pictures: list[Image.Image]) -> None:
    from transformers import Florence2ForConditionalGeneration, Florence2Processor

    network: Any = Florence2ForConditionalGeneration.from_pretrained(florence_folder).eval()
    processor: Any = Florence2Processor.from_pretrained(florence_folder)
    says = LanguageModel(
        weights=str(florence_folder), tokens=7, beams=3, precision=Precision.float32, instruction="<CAPTION>"
    ).open(CPU)
    for picture in pictures:
        inputs = processor(images=picture, text="<CAPTION>", return_tensors="pt")
        tokens = network.generate(**inputs, num_beams=3, max_new_tokens=7, do_sample=False)
        text = processor.batch_decode(tokens, skip_special_tokens=False)[0]
        wanted = processor.post_process_generation(text=text, task="<CAPTION>")["<CAPTION>"]
        assert says([picture], ["a"]) == [wanted]


def test_qwen_says_what_its_network_says_of_a_question_put_by_hand(
    qwen_folder: Path, pictures: list[Image.Image]
) -> None:
    """The prompt is the model's own template around picture and instruction, one token a merged patch."""
    from transformers import Qwen2Tokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    network: Any = Qwen2VLForConditionalGeneration.from_pretrained(qwen_folder).eval()
    tokenizer: Any = Qwen2Tokenizer.from_pretrained(qwen_folder)
    looked: Any = Qwen2VLImageProcessorPil.from_pretrained(qwen_folder)(images=[pictures[0]], return_tensors="pt")
    pads = int(looked["image_grid_thw"][0].prod()) // 4
    text = (
        f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * pads}<|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    asked = tokenizer(text, return_tensors="pt")
    kinds = (asked["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    tokens = network.generate(**asked, **looked, mm_token_type_ids=kinds, max_new_tokens=6, do_sample=False)
    wanted = tokenizer.decode(tokens[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    captioner = LanguageModel(
        weights=str(qwen_folder), tokens=6, instruction="What is it?", precision=Precision.float32
    )
    assert captioner.open(CPU)([pictures[0]], ["a"]) == [wanted]


def test_a_system_instruction_changes_what_a_model_says(qwen_folder: Path, pictures: list[Image.Image]) -> None:
    settings: dict[str, Any] = {"weights": str(qwen_folder), "tokens": 12, "precision": "float32"}
    plain = LanguageModel(**settings).open(CPU)(pictures, ["a"] * 3)
    told = LanguageModel(**settings, system="You name colours.").open(CPU)(pictures, ["a"] * 3)
    assert plain != told


def test_large_pictures_are_shown_smaller(qwen_folder: Path) -> None:
    large = Image.radial_gradient("L").resize((512, 256)).convert("RGB")
    small = large.resize((128, 64), Image.Resampling.LANCZOS)
    settings: dict[str, Any] = {"weights": str(qwen_folder), "tokens": 6, "precision": "float32"}
    says = LanguageModel(**settings, pixels=128 * 64).open(CPU)
    assert says([large], ["a"]) == says([small], ["a"])


def test_a_picture_that_the_model_does_not_take_is_named_and_the_others_are_written(
    gallery: Path, qwen_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (2100, 7)).save(gallery / "ribbon.png")  # Qwen-VL refuses 200 to 1
    code = ask(gallery, "--captioner", "language", f"weights={qwen_folder}", "tokens=3", "precision=float32", "batch=4")
    assert code == 3
    said = capsys.readouterr().err
    assert "ribbon.png" in said
    assert "1 files could not be captioned" in said
    assert set(captions_in(gallery)) == {"red", "green", "blue"}


def test_a_task_that_gives_boxes_is_refused(florence_folder: Path) -> None:
    with pytest.raises(RecipeError, match="not a caption") as caught:
        LanguageModel(weights=str(florence_folder), instruction="<OD>").open(CPU)
    assert "<MORE_DETAILED_CAPTION>" in str(caught.value.mend)


def test_a_model_without_a_conversation_is_refused(qwen_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(qwen_folder, tmp_path / "mute"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(WeightsError, match="conversation"):
        LanguageModel(weights=str(folder)).open(CPU)


def test_a_model_of_another_class_is_refused(qwen_folder: Path, florence_folder: Path) -> None:
    with pytest.raises(WeightsError):
        Blip(weights=str(florence_folder)).open(CPU)
    with pytest.raises(WeightsError):
        Blip(weights=str(qwen_folder)).open(CPU)


def test_what_a_network_says_becomes_one_clean_line() -> None:
    assert one_line(" a\tcat\n\n on \x1b[31ma‮ mat � ") == "a cat on [31ma mat"
