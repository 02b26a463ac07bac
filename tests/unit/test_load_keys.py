"""API keys and the secrets of headers, read where requests are made."""

from __future__ import annotations

import pytest

from sandbox.errors import UsageError
from sandbox.load.keys import api_keys, filled
from sandbox.spec.loadtest import Endpoint, Share, variables_in


def test_headers_are_filled_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "one")
    monkeypatch.setenv("B_KEY", "${A_KEY}")
    headers = {"api-key": "${A_KEY}", "X-Both": "${A_KEY}/${B_KEY}", "X-Plain": "$A_KEY costs $5"}
    assert variables_in(headers) == {"A_KEY", "B_KEY"}
    assert filled(headers) == {"api-key": "one", "X-Both": "one/${A_KEY}", "X-Plain": "$A_KEY costs $5"}


def test_all_that_are_not_set_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    monkeypatch.setenv("B_KEY", "")
    with pytest.raises(UsageError, match="not set: A_KEY, B_KEY"):
        filled({"api-key": "${B_KEY}${A_KEY}"})


@pytest.mark.parametrize("value", ["one-line\n", "tab\there", "gr\u00fc\u00df"])
def test_what_no_header_can_carry_is_refused_by_name_alone(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("A_KEY", value)
    with pytest.raises(UsageError, match="A_KEY: holds a line break") as caught:
        api_keys("A_KEY", "")
    assert value.strip() not in str(caught.value)


@pytest.mark.parametrize("name", ["Authorization", "COOKIE", "api-key", "x-api-key", "Proxy-Authorization"])
def test_a_secret_is_not_written_down(name: str) -> None:
    with pytest.raises(ValueError, match="is a secret"):
        Share.model_validate({"profile": "chat-tiny", "headers": {name: "abc"}})
    kept = Endpoint.model_validate({"url": "http://x", "headers": {name: "Bearer ${MY_KEY}"}})
    assert kept.headers == {name: "Bearer ${MY_KEY}"}


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Connection", "Upgrade"])
def test_the_client_alone_says_how_a_request_is_framed(name: str) -> None:
    with pytest.raises(ValueError, match="is written by the client"):
        Endpoint.model_validate({"url": "http://x", "headers": {name: "1"}})


@pytest.mark.parametrize("url", ["http://me:pw@host", "https://me@host/v1", "http://:pw@host"])
def test_a_url_holds_no_secret(url: str) -> None:
    with pytest.raises(ValueError, match="holds a user or a password"):
        Endpoint.model_validate({"url": url})
