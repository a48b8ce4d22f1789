"""Captions of which the text encoder does not read the end."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from trainer.core.seeds import Seeds
from trainer.data.account import Account
from trainer.data.captions import captions_needed
from trainer.data.health.findings import Finding, ModelFacts, about, counted
from trainer.data.health.words import RulesOf

_LOST_SHOWN: Final = 60  # letters of lost words that a finding shows


@dataclass(frozen=True, slots=True, kw_only=True)
class CutCaption:
    """The longest form of a picture's words, and what of it is not read."""

    place: int  # in `Account.accepted`
    caption: str  # as the rules make it
    tokens: int
    over: int  # of them, how many are cut off
    lost: str = ""  # the words that are cut off, where the model can say

    def as_json(self) -> dict[str, Any]:
        """Plain text and numbers."""
        return asdict(self)


def cut_captions(account: Account, rules_of: RulesOf, model: ModelFacts) -> list[CutCaption]:
    """Every picture of which a caption is longer than the text encoder reads, in the form that loses most.

    Args:
        account: whose captions.
        rules_of: how the captions of a picture are treated.
        model: counts the tokens.
    """
    return [] if model.count_tokens is None else list(_cut(account, rules_of, model, model.count_tokens))


def overflow_findings(account: Account, cut: list[CutCaption], limit: int) -> Iterator[Finding]:
    """One finding for all captions that are too long."""
    if not cut:
        return
    worst = sorted(cut, key=lambda one: -one.over)
    lost = worst[0].lost
    example = f" Such as: {lost[:_LOST_SHOWN]!r}{'...' if len(lost) > _LOST_SHOWN else ''}." if lost else ""
    finding = Finding(
        kind="token-overflow",
        level="warning",
        what=f"{counted(len(cut), 'caption is', 'captions are')} longer than {limit} tokens; up to {worst[0].over} are "
        f"cut off.{example}",
        mend="Shorten them; what matters most belongs in front.",
    )
    yield about(account, [one.place for one in worst], finding)


def _over(text: str, count: Callable[[str], int], limit: int) -> int:
    """How many tokens too many, at least 0; a text of no more bytes than the limit has no more tokens either."""
    return 0 if len(text.encode("utf-8")) <= limit else max(count(text) - limit, 0)


def _cut(account: Account, rules_of: RulesOf, model: ModelFacts, count: Callable[[str], int]) -> Iterator[CutCaption]:
    seeds = Seeds(0)  # the order of tags does not change how many tokens they have
    for place, example in enumerate(account.accepted):
        texts = captions_needed([example], rules_of, seeds)
        over, caption = max((_over(text, count, model.token_limit), text) for text in texts)
        if over:
            yield CutCaption(
                place=place,
                caption=caption,
                tokens=model.token_limit + over,
                over=over,
                lost=model.lost_words(caption) if model.lost_words else "",
            )
