"""How each program uses what comes out of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final, Literal

Nature = Literal["lora", "dora", "product", "words", "model", "model folder", "peft folder", "diffusers file"]

_CONVERT: Final = "The command trainer weights convert makes the other layouts."
_ONLY_TRYING: Final = (
    "It cannot open the small base of this package, which is for trying out: train on a base of your own."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How one program uses the result."""

    name: str
    works: bool
    how: tuple[str, ...]  # sentences, in order
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What must be known of a result to say how it is used."""

    name: str  # without its suffix
    file: str  # with it; a folder's name has none
    nature: Nature
    base: str  # by which a person finds it again; no folders
    base_code: str  # as diffusers would be told
    trigger: str
    words: Mapping[str, str]  # of new words: the file of each
    strength: float
    velocity: bool  # whether the model predicts velocity
    two_encoders: bool  # whether new words are of a model with two text encoders
    bundled: bool = False  # whether the base is the small one that comes with the package


def programs_for(result: Result) -> list[Program]:
    """What to do in each program, those first in which it works."""
    says = _SAYS[result.nature](result)
    if result.bundled:
        says = [one if one.name == "diffusers" else _no(one.name, _ONLY_TRYING) for one in says]
    own = Program(
        name="trainer",
        works=True,
        how=("In the folder from which the run was trained:",),
        code=f"trainer sample RUN --prompt {quote(_prompt(result))}",
    )
    return [own, *sorted(says, key=lambda program: not program.works)]


def _prompt(result: Result, rest: str = "portrait, forest") -> str:
    words = ", ".join(word for word in (result.trigger, *(w for w in result.words if w != result.trigger)) if word)
    return f"{words}, {rest}" if words else rest


def _no(name: str, why: str) -> Program:
    return Program(name=name, works=False, how=(why,))


def _velocity(result: Result, words: str) -> tuple[str, ...]:
    return (words,) if result.velocity else ()


def _also_words(result: Result, folder: str, call: Callable[[str], str]) -> tuple[str, ...]:
    """That the files of new words are needed as well."""
    if not result.words:
        return ()
    calls = ", ".join(call(Path(file).stem) for file in result.words.values())
    return (f"Put {', '.join(result.words.values())} into {folder} too; a prompt calls them {calls}.",)


def _web_ui(result: Result) -> Program:
    weight = f"<lora:{result.name}:{result.strength:g}>"
    return Program(
        name="AUTOMATIC1111 and Forge",
        works=True,
        how=(
            f"Put {result.file} into models/Lora, and choose {result.base} as the checkpoint.",
            *_also_words(result, "embeddings", str),
            f"Write {weight} into the prompt; the number is how strongly it acts.",
            *_velocity(result, "The model predicts velocity: A1111 needs a .yaml beside the checkpoint that says so."),
        ),
        code=f"{_prompt(result)} {weight}",
    )


def _comfy(result: Result) -> Program:
    return Program(
        name="ComfyUI",
        works=True,
        how=(
            f"Put {result.file} into models/loras.",
            *_also_words(result, "models/embeddings", lambda stem: f"embedding:{stem}"),
            f"After Load Checkpoint ({result.base}), add a Load LoRA node with strength {result.strength:g}.",
            *_velocity(result, "The model predicts velocity: put a ModelSamplingDiscrete node (v_prediction) before."),
        ),
        code=_prompt(result),
    )


def _diffusers_code(result: Result, load: str, opened: str = "") -> str:
    """A script that draws one picture; `opened` opens another pipeline than the base's."""
    usual = (
        "from diffusers import AutoPipelineForText2Image\n\n"
        f'pipe = AutoPipelineForText2Image.from_pretrained("{result.base_code}", torch_dtype=torch.float16)'
    )
    prompt = _prompt(result).replace("\\", "\\\\").replace('"', '\\"')
    lines = ("import torch", opened or usual, load, f'pipe.to("cuda")("{prompt}").images[0].save("picture.png")')
    return "\n".join(line for line in lines if line)


def _words_code(result: Result) -> str:
    """How diffusers takes the files of new words."""
    lines: list[str] = []
    for word, file in result.words.items():
        token = word.replace("\\", "\\\\").replace('"', '\\"')
        if not result.two_encoders:
            lines.append(f'pipe.load_textual_inversion("{file}", token="{token}")')
            continue
        lines += [
            "from safetensors.torch import load_file",
            f'words = load_file("{file}")',
            f'pipe.load_textual_inversion(words["clip_l"], token="{token}")',
            f'pipe.load_textual_inversion(words["clip_g"], token="{token}",',
            "                             text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)",
        ]
    return "\n".join(lines)


def _diffusers(result: Result) -> Program:
    load = f'pipe.load_lora_weights("{result.file}", adapter_name="own")\npipe.set_adapters("own", {result.strength:g})'
    code = f"{_words_code(result)}\n{load}" if result.words else load
    return Program(name="diffusers", works=True, how=("In Python:",), code=_diffusers_code(result, code))


def _scripts(result: Result, module: str = "networks.lora") -> Program:
    base, prompt = quote(f"{result.base}.safetensors"), quote(_prompt(result))
    return Program(
        name="sd-scripts",
        works=True,
        how=(f"With gen_img.py, or sdxl_gen_img.py for SDXL{', and LyCORIS installed' if 'lyco' in module else ''}:",),
        code=(
            f"python gen_img.py --ckpt {base} --network_module {module} "
            f"--network_weights {quote(result.file)} --network_mul {result.strength:g} --prompt {prompt}"
        ),
    )


def _lora(result: Result) -> list[Program]:
    return [_web_ui(result), _comfy(result), _diffusers(result), _scripts(result)]


def _dora(result: Result) -> list[Program]:
    why = "It passes over the lengths of a DoRA and draws wrong pictures. Train with export.layout: diffusers for it."
    return [
        _web_ui(result),
        _comfy(result),
        _no("diffusers", why),
        _no("sd-scripts", "It does not take this form of DoRA."),
    ]


def _product(result: Result) -> list[Program]:
    return [
        _web_ui(result),
        _comfy(result),
        _scripts(result, "lycoris.kohya"),
        _no(
            "diffusers", "It does not load LoHa and LoKr; trainer weights merge with --rank makes a LoRA that it loads."
        ),
    ]


def _words(result: Result) -> list[Program]:
    files = ", ".join(result.words.values()) or result.file
    stems = [Path(file).stem for file in result.words.values()] or [result.name]
    plain = ", ".join(stems)
    base = quote(f"{result.base}.safetensors")
    given = " ".join(map(quote, result.words.values())) or quote(result.file)
    return [
        Program(
            name="AUTOMATIC1111 and Forge",
            works=True,
            how=(f"Put {files} into embeddings; a prompt calls it by the file's name.",),
            code=f"{plain}, portrait, forest",
        ),
        Program(
            name="ComfyUI",
            works=True,
            how=(f"Put {files} into models/embeddings.",),
            code=f"{', '.join(f'embedding:{stem}' for stem in stems)}, portrait, forest",
        ),
        Program(name="diffusers", works=True, how=("In Python:",), code=_diffusers_code(result, _words_code(result))),
        Program(
            name="sd-scripts",
            works=True,
            how=("With gen_img.py, or sdxl_gen_img.py for SDXL:",),
            code=f"python gen_img.py --ckpt {base} --textual_inversion_embeddings {given} "
            f"--prompt {quote(f'{plain}, portrait, forest')}",
        ),
    ]


def _model(result: Result) -> list[Program]:
    opened = (
        "from diffusers import StableDiffusionPipeline  # of SDXL: StableDiffusionXLPipeline\n\n"
        f'pipe = StableDiffusionPipeline.from_single_file("{result.file}", torch_dtype=torch.float16)'
    )
    return [
        Program(
            name="AUTOMATIC1111 and Forge",
            works=True,
            how=(
                f"Put {result.file} into models/Stable-diffusion and choose it as the checkpoint.",
                *_velocity(result, "The model predicts velocity: A1111 needs a .yaml beside it that says so."),
            ),
            code=_prompt(result),
        ),
        Program(
            name="ComfyUI",
            works=True,
            how=(f"Put {result.file} into models/checkpoints and choose it in Load Checkpoint.",),
            code=_prompt(result),
        ),
        Program(name="diffusers", works=True, how=("In Python:",), code=_diffusers_code(result, "", opened)),
        Program(
            name="sd-scripts",
            works=True,
            how=("As the base of drawing or of further training:",),
            code=f"python gen_img.py --ckpt {quote(result.file)} --prompt {quote(_prompt(result))}",
        ),
    ]


def _folder(result: Result) -> list[Program]:
    opened = (
        "from diffusers import AutoPipelineForText2Image\n\n"
        f'pipe = AutoPipelineForText2Image.from_pretrained("{result.file}", torch_dtype=torch.float16)'
    )
    why = f"It wants one file: trainer weights convert {result.file} {result.name}.safetensors --to single-file."
    return [
        Program(name="diffusers", works=True, how=("In Python:",), code=_diffusers_code(result, "", opened)),
        *(_no(name, why) for name in ("AUTOMATIC1111 and Forge", "ComfyUI", "sd-scripts")),
    ]


def _peft(result: Result) -> list[Program]:
    load = f'from peft import PeftModel\npipe.unet = PeftModel.from_pretrained(pipe.unet, "{result.file}/unet")'
    why = f"It does not read peft's folders. {_CONVERT}"
    return [
        Program(name="diffusers", works=True, how=("In Python, with peft:",), code=_diffusers_code(result, load)),
        *(_no(name, why) for name in ("AUTOMATIC1111 and Forge", "ComfyUI", "sd-scripts")),
    ]


def _diffusers_file(result: Result) -> list[Program]:
    why = f"The layers in this file have the names of diffusers. {_CONVERT}"
    return [_diffusers(result), *(_no(name, why) for name in ("AUTOMATIC1111 and Forge", "ComfyUI", "sd-scripts"))]


_SAYS: Final[Mapping[Nature, Callable[[Result], list[Program]]]] = {
    "lora": _lora,
    "dora": _dora,
    "product": _product,
    "words": _words,
    "model": _model,
    "model folder": _folder,
    "peft folder": _peft,
    "diffusers file": _diffusers_file,
}
