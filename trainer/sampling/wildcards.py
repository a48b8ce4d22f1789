"""`__name__` and `{a|b}` in a prompt -> words, by chance that a seed decides."""

import logging
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainer.core.errors import DataError
from trainer.core.files import printable
from trainer.data.decoding import read_regular
from trainer.data.walking import walk

if TYPE_CHECKING:
    from dynamicprompts.wildcards import WildcardManager

_LARGEST: Final = 16 << 20  # bytes of a wildcard file
_NAME: Final = re.compile(r"__(?P<name>[^\s_{}|](?:[^\s{}|]*?[^\s_{}|])?)__")
_CHOICE: Final = re.compile(r"\{[^{}]*(?:\||\$\$)|\{[^{}]*\{")


class Wildcards:
    """The text files of one folder, one choice a line; and choices that stand in the prompt itself.

    What stands for what is `dynamicprompts`' doing, which A1111's users know: `{a|b}`, `{2$$a|b|c}`, `{0.3::a|0.7::b}`.
    Nothing outside of the folder is ever read: the names of prompts are looked up among what was found there.
    """

    def __init__(self, folder: Path | None) -> None:
        """Nothing is read yet.

        Args:
            folder: with files such as colour.txt and animals/cat.txt for __colour__ and __animals/cat__.
        """
        self._folder = folder

    def fill(self, text: str, seed: int) -> str:
        """The prompt with one choice for each; the same seed takes the same. A prompt without choices stays as it is.

        Raises:
            DataError: there is no wildcard of that name, one leads to itself, or the braces cannot be read.
        """
        if not _NAME.search(text) and not _CHOICE.search(text):
            return text
        from dynamicprompts.generators.randomprompt import RandomPromptGenerator
        from pyparsing import ParseBaseException

        logging.getLogger("dynamicprompts").setLevel(logging.ERROR)  # what it warns of, we refuse
        try:
            filled = RandomPromptGenerator(self._manager, seed=seed).generate(text, 1)[0]
        except ParseBaseException as error:
            raise DataError(
                "The choices of this prompt cannot be read.",
                where=_shown(text),
                mend="Close each brace, as in {red|blue}; beside choices, write no $, % or { that means a letter.",
            ) from error
        except RecursionError as error:
            raise DataError(
                "A wildcard of this prompt leads back to itself.",
                where=_shown(text),
                mend="Take its name out of its own file, and out of the files that it names.",
            ) from error
        missing = _NAME.search(filled)
        if missing is not None:
            known = ", ".join(sorted(self._choices)[:20]) or "none"
            raise DataError(
                f"There is no wildcard called {printable(missing['name'])}.",
                where=_shown(text) if self._folder is None else printable(str(self._folder)),
                mend=f"Name the folder of your wildcard files with --wildcards. There are: {known}.",
            )
        return filled

    @cached_property
    def _choices(self) -> Mapping[str, list[str]]:
        """The lines of each file, by its name without the suffix."""
        if self._folder is None:
            return {}
        if not self._folder.is_dir():
            raise DataError("There is no such folder of wildcards.", where=printable(str(self._folder)))
        found: dict[str, list[str]] = {}
        for entry in walk(self._folder, recursive=True).files:
            if entry.relative.endswith(".txt"):
                text = read_regular(entry.path, _LARGEST).decode("utf-8-sig", errors="replace")
                lines = [line.split(" #", maxsplit=1)[0].strip() for line in text.splitlines()]
                found[entry.relative.removesuffix(".txt")] = [line for line in lines if line and line[0] != "#"]
        return found

    @cached_property
    def _manager(self) -> "WildcardManager":
        from dynamicprompts.wildcards import WildcardManager

        return WildcardManager(root_map={"": [dict(self._choices)]})


def _shown(text: str) -> str:
    return printable(text if len(text) <= 200 else f"{text[:199]}…")
