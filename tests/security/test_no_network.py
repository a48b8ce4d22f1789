"""No verb asks for a network unless a tracker, a hub name or an address is in the recipe."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.cli.main import run

VERBS = [
    pytest.param(["doctor", "train"], id="train"),
    pytest.param(["plan", "cache"], id="plan", marks=pytest.mark.slow),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to reach something beyond this process, which fails."""
    attempts: list[str] = []

    def refuse(name: str) -> Callable[..., None]:
        def refused(*arguments: Any, **_: Any) -> None:
            attempts.append(f"{name} {arguments[-1:]}")
            raise OSError("there is no network")

        return refused

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse(name))
    return attempts


@pytest.mark.parametrize("verbs", VERBS)
def test_a_run_from_its_pictures_to_its_result_connects_to_nothing(
    recipe_file: Callable[..., Path], verbs: list[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # as on a machine that has a network
    recipe = str(recipe_file(previews={"every": 2, "prompts": ["thing"], "size": 16, "draw": {"steps": 1}}))
    for verb in verbs:
        assert run([verb, recipe]) == 0, verb
    assert asked == []


def test_the_watch_would_notice(asked: list[str]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("127.0.0.1", 9))
    with socket.socket() as one, pytest.raises(OSError, match="no network"):
        one.connect(("127.0.0.1", 9))
    assert len(asked) == 2
