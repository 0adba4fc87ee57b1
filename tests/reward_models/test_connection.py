"""Addresses of scorers elsewhere, and an environment in which no connection can be made."""

from __future__ import annotations

from typing import Any

import pytest

from reward_models import build
from reward_models.client import RemoteScorer


@pytest.mark.parametrize(
    "url, words",
    [
        ("http://a:1 http://b:2", "several are a list, or one text with commas"),
        ("http://a:1;http://b:2", "several are a list, or one text with commas"),
        ("http://127.0.0.1:80a90", "Port could not be cast to integer value as '80a90'"),
        ("http://127.0.0.1:99999", "Port out of range 0-65535"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://:8090", "it names no host"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"shapes: remote = .* must be an address.*{words}"):
        RemoteScorer(url, "shapes")
    with pytest.raises(ValueError, match=f"judge: url = .* must be an address.*{words}"):
        build("judge", url=url, model="m")


@pytest.mark.parametrize("url", [5, None, {"a": "http://a"}])
def test_what_is_no_text_is_no_address(url: Any) -> None:
    with pytest.raises(ValueError, match=r"remote = .* must be an address"):
        RemoteScorer(url, "shapes")
    with pytest.raises(ValueError, match=r"judge: url = .* must be a text"):
        build("judge", url=url, model="m")


@pytest.mark.parametrize(
    "variable, value",
    [
        ("ALL_PROXY", "socks9://127.0.0.1:1"),
        ("NO_PROXY", "localhost,[::1]"),
        ("SSL_CERT_FILE", "/nonexistent"),
    ],
)
def test_an_environment_that_breaks_connections_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    scorer: Any = build("judge", url="http://example.org/v1", model="m")
    with pytest.raises(ValueError, match=f"judge: no connection can be made, .*{variable}"):
        scorer.check()
