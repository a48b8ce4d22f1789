"""No secret and no private path leaves."""

import json

import pytest

from trainer.core.redacting import has_secret, redacted, redacted_text, without_secrets

SECRETS = [
    "hf_" + "aB3" * 11,
    "0123456789abcdef" * 2 + "01234567",
    "wandb_v1_" + "aB3" * 12,
    "ghp_" + "aB3" * 12,
    "AKIA" + "A1B2" * 4,
    "sk-proj-" + "aB3" * 12,
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", ["{}", "a caption with {} in it", "https://me:{}@example.org/x", "--key={}"])
def test_secrets_are_found_by_their_look(secret: str, place: str) -> None:
    assert secret not in redacted_text(place.format(secret))


@pytest.mark.parametrize("key", ["token", "hf_token", "API_KEY", "apikey", "password", "client_secret"])
def test_secrets_are_found_by_their_key(key: str) -> None:
    assert "swordfish" not in json.dumps(redacted({"a": [{key: "swordfish"}]}))


@pytest.mark.parametrize("path", ["/home/alice/secret-project/pictures", r"C:\Users\alice\secret-project\pictures"])
def test_absolute_paths_keep_their_last_name_only(path: str) -> None:
    clean = json.dumps(redacted({"sources": [{"path": path}]}))
    assert "alice" not in clean
    assert "secret-project" not in clean
    assert "pictures" in clean


def test_what_is_harmless_stays() -> None:
    record: dict[str, object] = {
        "name": "blob",
        "keep_tokens": 2,
        "path": "datasets/blob",
        "rate": 1e-3,
        "digest": "0f" * 32,
        "prompts": ["a blob, smiling", "1/2"],
        "nothing": None,
        "resume": True,
    }
    assert redacted(record) == record


def test_what_the_environment_keeps_secret_is_hidden_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """For keys that look like nothing, as those of storage do."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtnFEMI+K7MD")
    monkeypatch.setenv("SOME_TOKEN_FILE", "/var/run/some-token")
    assert redacted_text("refused: wJalr/XUtnFEMI+K7MD!") == "refused: [hidden]!"
    assert redacted_text("reads /var/run/some-token now") == "reads /var/run/some-token now"


def test_what_stays_here_keeps_its_paths_and_loses_its_secrets() -> None:
    kept = without_secrets({"path": "/home/alice/x", "captions": [f"a cat {SECRETS[0]}", 3, None]})
    assert kept == {"path": "/home/alice/x", "captions": ["a cat [hidden]", 3, None]}


def test_a_commit_is_no_secret() -> None:
    assert not has_secret("0123456789abcdef" * 2 + "01234567")
    assert has_secret("https://me:swordfish@host/x")
