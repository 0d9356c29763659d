"""Over real HTTP: OpenAI's own client, several at once, those who hang up, and what is refused."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from serving_process import SLOTS, WAITING, WINDOW, Server, body, until
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.trunk import Trunk
from trimtab.pipeline import find_trained
from trimtab.records.types import Message
from trimtab.tensors.tree import TokenGroup, pack

QUESTIONS = ("Why?", "你好吗", "What is the oldest word that we know of, and who wrote it down?", "x", "a\n\nb")
ENDLESS = 10_000  # tokens: many seconds on any machine
LONG = 200
Trunks = dict[str, tuple[Trunk, str | None]]


@pytest.fixture(scope="module")
def trunks(served_models: dict[str, Path]) -> Trunks:
    """Each served model by its name there, as ``generate`` opens it."""
    torch.set_num_threads(1)
    names = {"plain": "base", "red": "red", "blue": "blue"}
    return {name: Trunk.open(find_trained(str(served_models[own])), dtype="float32") for name, own in names.items()}


def sampled(
    trunks: Trunks, model: str, question: str, sampling: Sampling, *, n: int = 1, seed: int = 0
) -> list[tuple[str, str, int]]:
    """(text, finish, tokens) of what the batch sampler makes of a question."""
    trunk, adapter = trunks[model]
    prompt = trunk.chat.prompt([Message(role="user", content=question)])
    ((*answers,),) = TorchSampler(trunk, adapter, stop=trunk.chat.stop).sample(
        [prompt], k=n, sampling=sampling, seed=seed
    )
    return [(trunk.chat.decode(a.tokens), a.finish, len(a.tokens)) for a in answers]


def create(client: openai.OpenAI, model: str, question: str, **settings: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 24, **settings}
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **settings)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_models_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["red", "plain", "blue"]
    card = client.models.retrieve("red").model_dump()
    assert (card["owned_by"], card["max_model_len"], card["identity"][:4]) == ("trimtab", WINDOW, "red0")
    with pytest.raises(openai.NotFoundError, match="did you mean 'plain'"):
        create(client, "plein", "Why?")


def test_answers_are_the_samplers(client: openai.OpenAI, trunks: Trunks) -> None:
    sampling = Sampling(max_tokens=60, temperature=1.3, top_p=0.95)
    got = create(client, "blue", "Why?", n=3, temperature=1.3, top_p=0.95, max_tokens=60, seed=11)
    expected = sampled(trunks, "blue", "Why?", sampling, n=3, seed=11)
    assert [(c.message.content, c.finish_reason) for c in got.choices] == [(text, how) for text, how, _ in expected]
    assert [c.index for c in got.choices] == [0, 1, 2]
    assert got.usage.completion_tokens == sum(count for *_, count in expected)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.model == "blue"


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"n": 2, "temperature": 1.2, "seed": 5, "max_tokens": 80, "stop": ["~", "zz"]}
    whole = create(client, "red", "你好吗", **settings)
    chunks = list(create(client, "red", "你好吗", stream=True, stream_options={"include_usage": True}, **settings))
    *spoken, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert {chunk.usage for chunk in spoken} == {None}
    assert len({chunk.id for chunk in chunks}) == 1
    for i, choice in enumerate(whole.choices):
        own = [c for chunk in spoken for c in chunk.choices if c.index == i]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert "~" not in choice.message.content
    assert len(spoken) > 12  # it came in pieces


def test_the_stream_on_the_wire(server: Server) -> None:
    with server.http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = reply.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") and "\n" not in event for event in events[:-1])
    first = json.loads(events[0].removeprefix("data: "))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "usage" not in first


def test_many_at_once_get_what_each_gets_alone(client: openai.OpenAI, trunks: Trunks) -> None:
    wanted = [(model, question) for question in QUESTIONS for model in ("plain", "red", "blue")]
    room = threading.Semaphore(SLOTS + WAITING)

    def one(model: str, question: str) -> str:
        with room:
            return str(create(client, model, question).choices[0].message.content)

    with ThreadPoolExecutor(SLOTS + WAITING) as pool:
        got = list(pool.map(lambda own: one(*own), wanted))
    greedy = Sampling(max_tokens=24, temperature=0)
    assert got == [sampled(trunks, model, question, greedy)[0][0] for model, question in wanted]
    assert len(set(got[:3])) == 3  # one question, three models


def test_a_seed_is_drawn_and_told_when_none_is_given(server: Server) -> None:
    first, second = (server.ask(temperature=1.5, max_tokens=30) for _ in range(2))
    assert first.json()["choices"] != second.json()["choices"]
    seed = int(first.headers["x-trimtab-seed"])
    again = server.ask(temperature=1.5, max_tokens=30, seed=seed)
    assert again.json()["choices"] == first.json()["choices"]


def test_log_probabilities_are_the_models(client: openai.OpenAI, trunks: Trunks) -> None:
    got = create(client, "red", "Why?", temperature=0.7, seed=3, max_tokens=9, logprobs=True, top_logprobs=3)
    trunk, adapter = trunks["red"]
    prompt = trunk.chat.prompt([Message(role="user", content="Why?")])
    ((answer,),) = TorchSampler(trunk, adapter, stop=trunk.chat.stop).sample(
        [prompt], k=1, sampling=Sampling(max_tokens=9, temperature=0.7), seed=3
    )
    with torch.no_grad(), trunk.using(adapter):
        batch = pack([TokenGroup(prompt=prompt, answers=(answer.tokens,))])
        logps = trunk.head.logits(trunk.hidden(batch)[batch.predictor]).log_softmax(-1)
    told = got.choices[0].logprobs.content
    own = logps.gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
    assert [t.logprob for t in told] == pytest.approx(own.tolist(), abs=1e-3)
    for token, row in zip(told, logps, strict=True):
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
    assert create(client, "red", "Why?").choices[0].logprobs is None


def test_plain_completions(client: openai.OpenAI, trunks: Trunks) -> None:
    by_text = client.completions.create(model="plain", prompt="Once", temperature=0, max_tokens=12)
    by_ids = client.completions.create(model="plain", prompt=list(b"Once"), temperature=0, max_tokens=12)
    trunk, adapter = trunks["plain"]
    ((answer,),) = TorchSampler(trunk, adapter, stop=trunk.chat.stop).sample(
        [tuple(b"Once")], k=1, sampling=Sampling(max_tokens=12, temperature=0), seed=0
    )
    assert by_text.choices[0].text == by_ids.choices[0].text == trunk.chat.decode(answer.tokens)
    assert by_text.usage is not None
    assert by_text.usage.prompt_tokens == 4
    stream = client.completions.create(model="plain", prompt="Once", temperature=0, max_tokens=12, stream=True)
    assert "".join(c.text for chunk in stream for c in chunk.choices) == by_text.choices[0].text


def test_what_is_harmless_is_let_pass_and_parts_of_text_are_joined(server: Server) -> None:
    plain = server.ask(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a b"}])
    dressed = server.ask(
        messages=[
            {"role": "developer", "content": "Be brief.", "name": "me"},
            {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        ],
        user="u-7", store=True, metadata={"a": "b"}, something_new=3, tools=[], presence_penalty=0, n=None, stop=None,
    )  # fmt: skip
    assert plain.status_code == dressed.status_code == 200
    assert plain.json()["choices"] == dressed.json()["choices"]


# --- what is refused --------------------------------------------------------------------------------------------------


def error_of(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.json().keys() == {"error"}
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return dict(error)


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "list"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", "user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "parts of text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "half a character"),
        ({"stop": "\udfff"}, None, "half a character"),
        ({"model": "\ud800"}, None, "half a character"),
        ({"model": 3}, "model", "string"),
        ({"temperature": "0"}, "temperature", "number"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"top_p": 0}, "top_p", "greater"),
        ({"n": 0}, "n", "greater"),
        ({"n": SLOTS + 1}, "n", f"{SLOTS + 1} answers at once, and this server writes at most {SLOTS}"),
        ({"seed": 2**63}, "seed", "less"),
        ({"stop": ["a", ""]}, "stop", "empty"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"max_tokens": 10**30}, "max_tokens", f"may have {WINDOW}"),
        ({"messages": [{"role": "user", "content": "a" * WINDOW}]}, "messages", f"may have {WINDOW}"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"logit_bias": {"5": 100}}, "logit_bias", "not supported"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    server: Server, change: dict[str, Any], param: str | None, says: str
) -> None:
    content = json.dumps(body(**change))
    reply = server.http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    error = error_of(reply)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert says in error["message"]


def test_a_prompt_that_is_too_long_names_both_numbers(server: Server) -> None:
    error = error_of(server.http.post("/v1/completions", json={"model": "plain", "prompt": [65] * (WINDOW + 5)}))
    assert str(WINDOW + 5) in error["message"]
    assert str(WINDOW) in error["message"].replace(str(WINDOW + 5), "")
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b"", "application/json"),
        (b'{"model": "\xff"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (json.dumps(body()).encode(), "text/plain"),  # what a page in a browser may send without asking
    ],
)
def test_bodies_that_are_no_request(server: Server, content: bytes, kind: str) -> None:
    error_of(server.http.post("/v1/chat/completions", content=content, headers={"Content-Type": kind}))


def test_other_ways_to_ask_for_what_is_not_there(server: Server) -> None:
    error_of(server.http.get("/v1/embeddings"), 404)
    error_of(server.http.get("/v1/chat/completions"), 405)
    error_of(server.http.get("/v1/models/nobody"), 404)
    error_of(server.http.post("/v1/completions", json={"model": "plain", "prompt": ["a", "b"]}))
    error_of(server.http.post("/v1/completions", json={"model": "plain", "prompt": [259]}))
    error_of(server.http.post("/v1/completions", json={"model": "plain", "prompt": ""}))
    assert server.ask(user="a" * 5_000_000).status_code == 413
    assert server.http.get("/health", headers={"Host": "evil.example"}).status_code == 400
    assert server.http.get("/health", headers={"Host": "localhost:1"}).status_code == 200


# --- those who wait, and those who hang up ----------------------------------------------------------------------------


def endless(**settings: Any) -> dict[str, Any]:
    return body(max_tokens=ENDLESS, **settings)


def test_who_hangs_up_leaves_the_slots(server: Server) -> None:
    before = time.monotonic()
    with server.http.stream("POST", "/v1/chat/completions", json=endless(n=2, stream=True)) as reply:
        lines = reply.iter_lines()
        assert all(next(lines) is not None for _ in range(9))
        assert server.health["running"] == 2
    assert until(lambda: server.health["running"] == 0)
    left = time.monotonic() - before
    before = time.monotonic()
    assert server.ask(max_tokens=LONG).json()["usage"]["completion_tokens"] == LONG
    assert left < (time.monotonic() - before) * ENDLESS / LONG / 2  # far from what a whole answer takes

    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/chat/completions", json=endless(n=3), timeout=0.3)
    assert until(lambda: server.health["running"] == 0)


def test_a_full_house(server: Server) -> None:
    with server.http.stream("POST", "/v1/chat/completions", json=endless(n=SLOTS, stream=True)) as first:
        lines = first.iter_lines()  # let go of, it would hang up
        next(lines)
        with server.http.stream("POST", "/v1/chat/completions", json=body(n=WAITING, stream=True)) as second:
            rest = second.iter_lines()
            next(rest)
            reply = server.ask()
            error = error_of(reply, 429)
            assert (error["type"], error["code"]) == ("rate_limit_error", "busy")
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert until(lambda: server.health == {"status": "ok", "running": 3, "waiting": 2, "slots": 3})
            first.close()  # now the others' turn has come
            assert "data: [DONE]" in list(rest)
    assert server.ask().status_code == 200
