"""Captions -> the states of a CLIP text encoder, in as many chunks of 75 tokens as the limit allows."""

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from trainer.batch import Conditioning
from trainer.core.errors import WeightsError
from trainer.families.folder_files import read_json
from trainer.families.spelling import Piece, Spelling

TokenLimit = Literal[75, 150, 225]
"""How many tokens of a caption are read."""

CHUNK: Final = 75  # tokens of a caption that one pass of the encoder reads, between its two end marks


class ClipWords:
    """The tokenizer of a CLIP text encoder, and how a long caption is cut for it."""

    def __init__(self, folder: Path, limit: TokenLimit) -> None:
        """Nothing is read yet.

        Args:
            folder: of the tokenizer.
            limit: tokens of a caption that are read.
        """
        self._folder = folder
        self._limit = limit
        self._loaded: Any = None  # transformers' tokenizer
        self.spelling: Spelling | None = None
        """New words, which are read as tokens of their own; none by default."""

    def count(self, caption: str) -> int:
        """The number of tokens of a caption, without end marks and before any cutting."""
        return len(self.tokens([caption])[0])

    def lost(self, caption: str) -> str:
        """The end of the caption that lies beyond the limit, as it stands there; "" if nothing does.

        It may begin within a word; a letter of several tokens that is cut is lost as a whole, and so is a new word.
        """
        if len(caption) <= self._limit and caption.isascii() and self.spelling is None:  # a token has at least one sign
            return ""
        places = [place for piece in self._pieces(caption) for place in self._places(piece)]
        return caption[places[self._limit] :].strip() if len(places) > self._limit else ""

    def tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """The tokens of each caption, without end marks and before any cutting."""
        pieces = [self._pieces(caption) for caption in captions]
        plain = [piece.text for row in pieces for piece in row if piece.tokens is None]
        read = iter(self._read(plain).input_ids if plain else ())
        return [[token for piece in row for token in piece.tokens or next(read)] for row in pieces]

    def chunks(self, captions: Sequence[str]) -> Tensor:
        """Tokens [B N 77], int64, of B captions in N = limit / 75 chunks.

        Each chunk is a beginning mark, up to 75 tokens, an end mark, and padding; tokens beyond the limit are cut off.
        """
        starts = range(0, self._limit, CHUNK)
        rows = [[self._chunk(ids[start : start + CHUNK]) for start in starts] for ids in self.tokens(captions)]
        return torch.tensor(rows, dtype=torch.int64)

    @property
    def comma(self) -> int:
        """The token of a comma."""
        return self._read(",").input_ids[0]

    @property
    def limit(self) -> int:
        """Tokens of a caption that are read."""
        return self._limit

    def marked(self, chunks: Sequence[Sequence[int]]) -> Tensor:
        """Tokens [N 77], int64, of N chunks of at most 75 tokens, with marks and padding."""
        return torch.tensor([self._chunk(ids) for ids in chunks], dtype=torch.int64)

    def first_end(self, tokens: Tensor) -> Tensor:
        """Where the first end mark of each row of tokens [B 77] stands, [B].

        Not where the greatest token stands, which is the same only as long as no tokens are added behind the end mark.
        """
        return (tokens == self._tokenizer.eos_token_id).int().argmax(dim=-1)

    def _pieces(self, caption: str) -> Sequence[Piece]:
        return [Piece(caption, 0)] if self.spelling is None else self.spelling.pieces(caption)

    def _places(self, piece: Piece) -> Sequence[int]:
        """Where in the caption each token of a piece begins."""
        if piece.tokens is not None:
            return [piece.start] * len(piece.tokens)
        read = self._read(piece.text, return_offsets_mapping=True).offset_mapping
        return [piece.start + begin for begin, _ in read]

    def _read(self, text: str | Sequence[str], **options: bool) -> Any:
        """What transformers' tokenizer makes of text, whole; that it may be too long is not its to say."""
        words = text if isinstance(text, str) else list(text)
        return self._tokenizer(words, add_special_tokens=False, truncation=False, verbose=False, **options)

    def _chunk(self, ids: Sequence[int]) -> list[int]:
        marks = self._tokenizer
        padding = [marks.pad_token_id] * (CHUNK - len(ids))
        return [marks.bos_token_id, *ids, marks.eos_token_id, *padding]

    @property
    def _tokenizer(self) -> Any:
        # an alias in transformers 5, which has but one; its types do not tell
        from transformers import CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

        if self._loaded is None:
            # Its pool of threads gains nothing on a few captions at once, warns of forks, and waits for ever where
            # memory is so short that its threads cannot start.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            check_tokenizer(self._folder)
            try:
                # the other one of transformers 4 does not know where in the text a token stands
                self._loaded = CLIPTokenizerFast.from_pretrained(self._folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise _broken(self._folder) from error
        return self._loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipStates:
    """What a text encoder makes of B captions in N chunks, each chunk alone."""

    layer: Tensor  # [B N 77 D] of the layer asked for, as it leaves it
    last: Tensor  # [B N 77 D] of the last layer, after the final norm


@dataclass(frozen=True, slots=True)
class ChunkStates:
    """What all text encoders of a family make of B captions, as its U-Net reads it, chunk by chunk."""

    encoders: Sequence[Tensor]  # [B N 77 D] of each encoder
    pooled: Tensor | None = None  # [B P]


def read_chunks(network: Any, tokens: Tensor, layer: int) -> ClipStates:
    """The states of tokens.

    Args:
        network: transformers' CLIPTextModel or CLIPTextModelWithProjection, which share no type of their own.
        tokens: [B N 77] on the network's device.
        layer: -1 is the last one, -2 the one before.
    """
    answer = network(tokens.flatten(0, 1), output_hidden_states=True)
    layer_states, last = answer.hidden_states[layer].float(), answer.last_hidden_state.float()
    return ClipStates(layer=layer_states.unflatten(0, tokens.shape[:2]), last=last.unflatten(0, tokens.shape[:2]))


def normed(network: Any, states: Tensor) -> Tensor:
    """States [... D] of a layer after the encoder's final norm."""
    bare = unwrapped(network)
    # one class holds the layers itself, the other within, as both did before transformers 5
    return getattr(bare, "text_model", bare).final_layer_norm(states)


def unwrapped(network: Any) -> Any:
    """The network itself, which training on several devices wraps."""
    return getattr(network, "module", network)  # the wrapper has the attribute, a network has not


def join_chunks(states: Tensor) -> Tensor:
    """The states [B T D], T = 75 N + 2, of captions that were encoded in N chunks, each alone, [B N 77 D].

    The first beginning mark, the 75 states of each chunk, and the last end mark stay, as in sd-scripts, which most
    long-caption models were trained with; some inference programs keep all 77 of each chunk.
    """
    first, last = states[:, 0, :1], states[:, -1, -1:]
    return torch.cat([first, states[:, :, 1:-1].flatten(1, 2), last], dim=1)


def join_states(states: ChunkStates) -> Conditioning:
    """What captions mean, laid out as for training."""
    return Conditioning(tokens=torch.cat([join_chunks(one) for one in states.encoders], dim=-1), pooled=states.pooled)


@contextmanager
def at_rest(networks: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Inside, the networks are in evaluation mode."""
    with ExitStack() as after:
        for network in networks:
            if network.training:
                after.callback(network.train)
                network.eval()
        yield


def check_tokenizer(folder: Path) -> None:
    """Make sure that a tokenizer's files are there; without them transformers would make an empty one.

    Raises:
        WeightsError: they are missing, or the vocabulary is no JSON.
    """
    if (folder / "tokenizer.json").is_file():
        read_json(folder, "tokenizer.json")
    elif (folder / "merges.txt").is_file():
        read_json(folder, "vocab.json")
    else:
        raise _broken(folder)


def _broken(folder: Path) -> WeightsError:
    return WeightsError(
        "The tokenizer of this model cannot be loaded.", where=str(folder), mend="Download the model again, whole."
    )
