"""Vision-language models: whole sentences, after an instruction."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import PositiveInt

from trainer.core.device import Precision
from trainer.core.errors import DataError, RecipeError, WeightsError
from trainer.data.captioners.base import Describer, NetworkCaptioner
from trainer.data.captioners.loading import find_model, load_network, load_processor

_TASK = "<MORE_DETAILED_CAPTION>"
_QUESTION = (
    "Describe this picture in one paragraph for someone who cannot see it: the subject first, then what it does, the "
    "surroundings, the style, the light and the colours. Write only what is seen."
)


class LanguageModel(NetworkCaptioner):
    """A vision-language model (Florence-2, Qwen-VL, LLaVA and others that transformers knows): whole sentences.

    Source: Xiao et al. 2023, arXiv:2311.06242 (Florence-2); Wang et al. 2024, arXiv:2409.12191 (Qwen2-VL).
    """

    kind: Literal["language"] = "language"
    weights: str = "florence-community/Florence-2-large"
    """A folder, or a name on the model hub, such as Qwen/Qwen2.5-VL-3B-Instruct."""
    instruction: str = ""
    """What the model is asked for; nothing said: <MORE_DETAILED_CAPTION> of Florence-2, a paragraph of the others."""
    system: str = ""
    """What the model is told of its role, where its conversations begin with that."""
    tokens: PositiveInt = 256
    """The longest caption, in tokens."""
    beams: PositiveInt = 1
    """How many beginnings are followed at once; Florence-2 is a little better with 3."""
    pixels: PositiveInt = 1_048_576
    """Larger pictures are shown to the model at this size: some models take memory for every pixel."""
    precision: Precision = Precision.bfloat16
    """Number format of the network."""

    def open(self, device: torch.device) -> Describer:
        """As the contract says."""
        folder = find_model(self.weights, self.revision)
        from transformers import AutoModelForImageTextToText, Florence2Processor

        processor = load_processor(folder)
        if isinstance(processor, Florence2Processor):
            task = _checked_task(processor, self.instruction or _TASK)
            prompt = task
        else:
            task = ""
            prompt = _conversation(processor, self.instruction or _QUESTION, self.system)
        network = load_network(AutoModelForImageTextToText, folder, self.precision, device)
        _pad_in_front(processor, network)

        def describe(pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
            inputs = _inputs(processor, [self._shrunk(picture) for picture in pictures], prompt)
            inputs = inputs.to(device, self.precision.dtype)
            with torch.inference_mode():
                made = network.generate(**inputs, num_beams=self.beams, max_new_tokens=self.tokens, do_sample=False)
            if not network.config.is_encoder_decoder:
                made = made[:, inputs["input_ids"].shape[1] :]
            return _answers(processor, made, task)

        return describe

    def _shrunk(self, picture: Image.Image) -> Image.Image:
        ratio = math.sqrt(self.pixels / (picture.width * picture.height))
        if ratio >= 1:
            return picture
        size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        return picture.resize(size, Image.Resampling.LANCZOS)


def _checked_task(processor: Any, task: str) -> str:  # Any: transformers' processors are untyped
    """`task`, one that Florence-2 answers with text and not with boxes."""
    answers: dict[str, str] = processor.tasks_answer_post_processing_type
    if answers.get(task, "pure_text") != "pure_text":
        known = ", ".join(name for name, form in answers.items() if form == "pure_text" and "REGION" not in name)
        raise RecipeError(
            f"The task {task} gives places in the picture, not a caption.",
            where="captioner.instruction",
            mend=f"Choose among: {known}.",
        )
    return task


def _conversation(processor: Any, question: str, system: str) -> str:
    """The text that asks for one picture, in the form that the model was taught."""
    from jinja2 import TemplateError

    asked: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    if system:
        asked.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    try:
        return processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    except (ValueError, TemplateError) as error:
        raise WeightsError(
            f"This model cannot be asked in a conversation: {str(error).strip().splitlines()[0]}",
            where="captioner.weights",
            mend="Use a model that follows instructions (-Instruct, -it, -hf), with its chat template.",
        ) from error


def _pad_in_front(processor: Any, network: Any) -> None:
    """Let answers begin where the question ends: what fills a batch up stands in front of the shorter questions."""
    tokenizer = processor.tokenizer
    if not network.config.is_encoder_decoder:
        tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _inputs(processor: Any, pictures: Sequence[Image.Image], prompt: str) -> Any:
    bos = processor.tokenizer.bos_token
    twice = {"add_special_tokens": False} if bos is not None and prompt.startswith(bos) else {}
    try:
        return processor(
            images=[[picture] for picture in pictures],
            text=[prompt] * len(pictures),
            padding=True,
            return_tensors="pt",
            **twice,
        )
    except ValueError as error:  # such as Qwen-VL's, of a picture 200 times as long as it is wide
        raise DataError(f"The model does not take this picture: {error}") from error


def _answers(processor: Any, made: torch.Tensor, task: str) -> list[str]:
    """Texts of tokens [pictures tokens]."""
    if not task:
        return processor.tokenizer.batch_decode(made, skip_special_tokens=True)
    texts = processor.tokenizer.batch_decode(made, skip_special_tokens=False)
    filler = processor.tokenizer.pad_token or ""
    answers = [
        processor.post_process_generation(text=text.replace(filler, "") if filler else text, task=task, image_size=None)
        for text in texts
    ]
    return [str(answer[task]) for answer in answers]
