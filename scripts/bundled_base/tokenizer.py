"""CLIP's tokenizer with a reduced vocabulary: the words the base can know spell exactly as in CLIP.

At a width of 96 the full table of 49,408 embeddings alone would be larger than the U-Net's middle. So only those
merges are kept that lie on CLIP's way to a word of the captions or of `common_words.txt`. Any other word falls
apart into shorter pieces and single bytes, never into an unknown token.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from bundled_base.captions import Entry

Merge = tuple[str, str]

CLIP_MERGE_COUNT = 49152 - 256 - 2
_SPECIALS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
# what `draw_caption` says around labels and keywords
_FRAME_WORDS = "a an person with portrait of emoji style"


def byte_letters() -> dict[int, str]:
    """Return GPT-2's printable letter for every byte, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def read_merges(path: Path) -> list[Merge]:
    """Return CLIP's merges in rank order; its first line is a comment, and it holds more than CLIP uses."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")[1 : CLIP_MERGE_COUNT + 1]
    merges: list[Merge] = []
    for line in lines:
        left, _, right = line.partition(" ")
        merges.append((left, right))
    return merges


def _join(pieces: Sequence[str], pair: Merge) -> list[str]:
    joined: list[str] = []
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            joined.append(pair[0] + pair[1])
            place += 2
        else:
            joined.append(pieces[place])
            place += 1
    return joined


def merges_of(word: str, ranks: dict[Merge, int]) -> list[Merge]:
    """Return the merges that CLIP makes, in order, when it spells a word."""
    letters = byte_letters()
    pieces = [letters[byte] for byte in word.encode("utf-8")]
    pieces[-1] += "</w>"
    used: list[Merge] = []
    while len(pieces) > 1:
        best = min(pairwise(pieces), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        used.append(best)
        pieces = _join(pieces, best)
    return used


def caption_words(entries: Iterable[Entry]) -> set[str]:
    """Return every word that a caption of the corpus may hold; digits and signs are single tokens anyway."""
    texts = [_FRAME_WORDS]
    for entry in entries:
        texts += [entry.label, entry.style, *entry.tags]
    return set(re.findall("[a-z]+", " ".join(texts).lower()))


def common_words() -> set[str]:
    """Return the everyday words that are kept besides those of the captions."""
    return set(Path(__file__).with_name("common_words.txt").read_text(encoding="utf-8").split())


def write_tokenizer(folder: Path, merges: Sequence[Merge], words: Iterable[str]) -> int:
    """Write the reduced tokenizer's files; return the size of its vocabulary."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    needed = {merge for word in words for merge in merges_of(word, ranks)}
    kept = [merge for merge in merges if merge in needed]
    letters = list(byte_letters().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in kept)]
    # two merges may give the same piece, and ids must stay unique
    unique = [*dict.fromkeys(pieces), _SPECIALS["bos_token"], _SPECIALS["eos_token"]]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: place for place, piece in enumerate(unique)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = [f"{left} {right}\n" for left, right in kept]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(lines), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(_SPECIALS), encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        **_SPECIALS,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return len(unique)
