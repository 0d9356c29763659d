"""Calls of an endpoint: what is sent and tried again, keys that are not shown, and what is said when it fails."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

import pytest

from judge_server import JudgeServer, Sent, completion
from trimtab.errors import ConfigError
from trimtab.rewards._ai_judge_http import Caller, Endpoint, EndpointError, Question, check_url, probe, wait_before

ASKED = Question(
    messages=({"role": "system", "content": "Judge."}, {"role": "user", "content": "A or B?"}), max_tokens=16,
    temperature=0.0, seed=7,
)  # fmt: skip


def at(server: JudgeServer, **settings: Any) -> Endpoint:
    return Endpoint(**{"url": server.url, "model": "vowels", "timeout": 30.0, **settings})


def ask(endpoint: Endpoint, **settings: Any) -> Any:
    with Caller(endpoint) as caller:
        return caller.ask(ASKED, **settings)


def failing(*replies: Any) -> Any:
    """Reply with each of these once, then with a completion."""
    left = list(replies)

    def handle(sent: Sent) -> Any:
        return left.pop(0) if left else (200, completion("A"))

    return handle


def picky(**sentences: str) -> Any:
    """Refuse a body with any of these fields, by an error that says so."""

    def handle(sent: Sent) -> Any:
        system = {"system": True} if sent["messages"][0]["role"] == "system" else {}
        for name, sentence in sentences.items():
            if name in {**sent, **system}:
                return 400, {"error": {"message": sentence, "type": "invalid_request_error"}}
        return 200, completion("A")

    return handle


def test_what_is_sent_and_read() -> None:
    with JudgeServer(handle=lambda sent: (200, completion("B", finish="length"))) as server:
        reply = ask(at(server))
    (sent,) = server.sent
    assert sent == {
        "model": "vowels", "messages": [dict(message) for message in ASKED.messages], "max_tokens": 16,
        "temperature": 0.0, "seed": 7, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    assert (reply.text, reply.finish, reply.tokens) == ("B", "length", ())
    assert "authorization" not in {name.lower() for name in server.headers[0]}


# --- again ------------------------------------------------------------------------------------------------------------


def test_waits_by_hand() -> None:
    assert [wait_before(n, None) for n in (1, 2, 3, 4, 20)] == [0.5, 1, 2, 4, 120]
    assert wait_before(5, "0") == 0
    assert wait_before(1, "7.5") == 7.5
    assert wait_before(1, formatdate(1000, usegmt=True), now=990) == 10
    assert wait_before(1, formatdate(1000, usegmt=True), now=1010) == 0
    assert wait_before(2, "soon") == wait_before(2, "nan") == 1


def test_a_busy_server_is_asked_again_when_it_says_so() -> None:
    busy = [(status, "busy", {"Retry-After": "0"}) for status in (429, 503, 500, 502)]
    with JudgeServer(handle=failing(*busy)) as server:
        assert ask(at(server)).text == "A"
    assert len(server.sent) == 5


def test_a_server_that_stays_busy_is_given_up() -> None:
    with (
        JudgeServer(handle=lambda sent: (503, {"error": "down"}, {"Retry-After": "0"})) as server,
        pytest.raises(EndpointError, match=r"answers 503: down$"),
    ):
        ask(at(server), tries=3)
    assert len(server.sent) == 3


def test_a_wait_of_an_hour_is_left_to_people() -> None:
    with (
        JudgeServer(handle=lambda sent: (429, "later", {"Retry-After": "3600"})) as server,
        pytest.raises(EndpointError, match=r"answers 429: later; it asks to wait 3600 s: come back then"),
    ):
        ask(at(server))
    assert len(server.sent) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 301])
def test_what_will_not_get_better_is_not_tried_again(status: int) -> None:
    with (
        JudgeServer(handle=lambda sent: (status, {"error": {"message": "no\n\tway \x1b[31m"}})) as server,
        pytest.raises(EndpointError, match=rf"answers {status}: no way \?\[31m$"),
    ):
        ask(at(server))
    assert len(server.sent) == 1


@pytest.mark.parametrize(
    "body",
    ["<html></html>", "[]", "{}", {"choices": []}, {"choices": [{"text": "A"}]},
     {"choices": [{"message": {"content": 3}}]},
     {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [3]}}]}],
)  # fmt: skip
def test_what_is_no_completion(body: Any) -> None:
    with (
        JudgeServer(handle=lambda sent: (200, body)) as server,
        pytest.raises(EndpointError, match="is no chat completion; is the address whole"),
    ):
        ask(at(server))
    assert len(server.sent) == 1


def test_nothing_said_is_an_empty_reply() -> None:
    """A model that thinks first, cut before it said anything."""
    with JudgeServer(handle=lambda sent: (200, completion(None, finish="length"))) as server:  # type: ignore[arg-type]
        assert ask(at(server)).text == ""


def test_nobody_there_and_too_slow() -> None:
    with (
        JudgeServer(handle=lambda sent: time.sleep(0.6) or (200, completion("A"))) as server,
        pytest.raises(EndpointError, match=r"no reply within 0\.2 s"),
    ):  # type: ignore[func-returns-value]
        ask(at(server, timeout=0.2), tries=1)
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask(at(server), tries=1)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_goes_into_the_header_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cr3t-k3y")
    with JudgeServer(handle=lambda sent: (401, {"error": {"message": "wrong key s3cr3t-k3y given"}})) as server:
        endpoint = at(server, key="JUDGE_KEY")
        with pytest.raises(EndpointError, match=r"answers 401: wrong key \*\*\* given") as caught:
            ask(endpoint)
        with pytest.raises(EndpointError, match=r"the key is that in 'JUDGE_KEY'") as probed:
            probe(endpoint, ASKED)
    assert server.headers[0]["Authorization"] == "Bearer s3cr3t-k3y"
    assert "s3cr3t" not in f"{server.sent}{endpoint!r}{caught.value!r}{probed.value!r}"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is not set"),
        ("two words", "odd characters"),
        ("a\x07b", "odd characters"),
        ("schlüssel", "odd characters"),
    ],
)
def test_keys_that_are_none(monkeypatch: pytest.MonkeyPatch, value: str, words: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ConfigError, match=words) as caught:
        Caller(Endpoint(url="http://127.0.0.1:1/v1", model="m", key="JUDGE_KEY"))
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        (" https://example.org/openai/v1?api-version=3 ", "https://example.org/openai/v1?api-version=3"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_addresses(url: str, found: str) -> None:
    assert check_url(url) == found


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000/v1", "is no"), ("file:///etc/passwd", "no http address"), ("http://", "no http address"),
        ("", "no http address"), ("http://a:x/", "is no address"),
        ("http://me:hidden@example.org/v1", "example.org holds a password or a key"),
        ("https://example.org/v1?api_key=hidden", "example.org holds a password or a key"),
    ],
)  # fmt: skip
def test_addresses_that_are_none(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_url(url)
    assert "hidden" not in str(caught.value)


# --- the first call ---------------------------------------------------------------------------------------------------


def test_what_an_endpoint_refuses_is_left_out_from_then_on() -> None:
    sentences: Mapping[str, str] = {
        "top_logprobs": "You are not allowed to request logprobs from this model",
        "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
        "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "seed": "seed: extra fields not permitted",
        "system": "System role not supported",
    }
    with JudgeServer(handle=picky(**sentences)) as server:
        endpoint, reply = probe(at(server), ASKED)
        assert ask(endpoint).text == reply.text == "A"
    assert set(endpoint.refused) == {"logprobs", "temperature", "max_tokens", "seed", "system"}
    assert server.sent[-1] == {
        "model": "vowels", "max_completion_tokens": 16, "messages": [{"role": "user", "content": "Judge.\n\nA or B?"}],
    }  # fmt: skip
    assert len(server.sent) == 7


def test_a_refusal_that_helps_nothing_ends() -> None:
    with (
        JudgeServer(handle=lambda sent: (400, {"error": {"message": "bad seed"}})) as server,
        pytest.raises(EndpointError, match="answers 400: bad seed"),
    ):
        probe(at(server), ASKED)
    assert len(server.sent) == 2


def test_a_model_that_is_not_there() -> None:
    with (
        JudgeServer(models=("vowels", "consonants")) as server,
        pytest.raises(EndpointError, match=r"/v1 has no model 'vovels'; did you mean 'vowels'\?$"),
    ):
        probe(at(server, model="vovels"), ASKED)


def test_an_address_that_is_not_whole() -> None:
    with JudgeServer() as server, pytest.raises(EndpointError, match=r"answers 404: <html>nothing here</html>"):
        probe(at(server, url=server.url.removesuffix("/v1")), ASKED)


def test_nobody_there_is_found_at_once() -> None:
    with JudgeServer() as server:
        pass
    with pytest.raises(EndpointError, match=rf"^{re.escape(server.url)} cannot be reached"):
        probe(at(server), ASKED)


def test_a_server_that_is_busy_at_first_is_waited_for() -> None:
    with JudgeServer(handle=failing((503, "loading", {"Retry-After": "0"}))) as server:
        assert probe(at(server), ASKED)[1].text == "A"


def test_no_key_where_one_is_wanted() -> None:
    with (
        JudgeServer(handle=lambda sent: (401, "who are you")) as server,
        pytest.raises(EndpointError, match=r"answers 401: who are you \(no key was sent; name its environment"),
    ):
        probe(at(server), ASKED)
