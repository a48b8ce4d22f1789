"""What is published of each family and comes with the package: configurations, and CLIP's tokenizer."""

import gzip
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Final, Literal

from trainer.core.errors import WeightsError
from trainer.core.files import write_atomically
from trainer.families.source import ModelFacts
from trainer.weights.metadata import KnownFamily, KnownPrediction

_FOLDER: Final = Path(__file__).parent / "configs"
TOKENS: Final = 49408
"""How many words CLIP's tokenizer knows, its two end marks among them."""

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_LETTERS: Final = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))


def published_configs(family: KnownFamily, prediction: KnownPrediction) -> dict[str, dict[str, Any]]:
    """The configurations of the family's published model: Stable Diffusion 1.5, 2.1 base (512 pixels), 2.1 or XL.

    Args:
        family: of the model.
        prediction: tells the two of Stable Diffusion 2 apart.

    Returns:
        Part -> configuration, with `scheduler` among them, in the words of diffusers and transformers.
    """
    name = family if family != "sd2" else ("sd2_768" if prediction == "velocity" else "sd2_512")
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def published_scheduler(facts: ModelFacts) -> dict[str, Any]:
    """The scheduler of the family's published model, with what is known of this one."""
    said = {"epsilon": "epsilon", "velocity": "v_prediction", "sample": "sample"}[facts.prediction]
    config = published_configs(facts.family, facts.prediction)["scheduler"] | {"prediction_type": said}
    if facts.zero_terminal_snr:
        # a scheduler that can rescale, and that begins at the last step (arXiv:2305.08891, section 3.3)
        kind = "EulerDiscreteScheduler" if facts.family == "sdxl" else "DDIMScheduler"
        config |= {"_class_name": kind, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def clip_tokenizer(padding: Literal["<|endoftext|>", "!"]) -> Path:
    """A folder with the files of CLIP's tokenizer, as transformers reads them; it is gone when the process ends.

    Args:
        padding: what fills up short captions: the end mark (SD1, SDXL's first), or token 0 (SD2, SDXL's second).

    Raises:
        WeightsError: there is no room for a temporary file.
    """
    try:
        return Path(_temporary_tokenizer(padding).name)
    except OSError as error:
        raise WeightsError(
            f"The tokenizer's files cannot be written: {error.strerror}.",
            where=gettempdir(),
            mend="Make room there, or name another folder in the environment variable TMPDIR.",
        ) from error


@cache  # what it gives is always the same, and objects that read a tokenizer late may outlive those that named it
def _temporary_tokenizer(padding: str) -> "TemporaryDirectory[str]":
    room = TemporaryDirectory(prefix="trainer-tokenizer-", ignore_cleanup_errors=True)
    _write_tokenizer(Path(room.name), padding)
    return room


def _write_tokenizer(folder: Path, padding: str) -> None:
    merges = gzip.decompress((_FOLDER / "clip_merges.txt.gz").read_bytes()).decode("utf-8")
    vocabulary = {token: number for number, token in enumerate(_tokens(merges))}
    marks = {"bos_token": _BEGIN, "eos_token": _END, "pad_token": padding, "unk_token": _END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace"}
    write_atomically(folder / "merges.txt", merges)
    write_atomically(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")))
    write_atomically(folder / "special_tokens_map.json", json.dumps(marks, indent=2) + "\n")
    tokenizer = {**settings, **marks, "add_prefix_space": False}
    write_atomically(folder / "tokenizer_config.json", json.dumps(tokenizer, indent=2) + "\n")


def _tokens(merges: str) -> list[str]:
    """The vocabulary in its order: each byte, each byte at the end of a word, each merge, the end marks."""
    others = (byte for byte in range(256) if byte not in _LETTERS)
    letters = [*map(chr, _LETTERS), *(chr(256 + number) for number, _ in enumerate(others))]
    merged = [line.replace(" ", "") for line in merges.splitlines()[1:]]
    return [*letters, *(f"{letter}</w>" for letter in letters), *merged, _BEGIN, _END]
