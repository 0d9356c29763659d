"""Calls of an OpenAI-compatible chat endpoint: what is sent, what is tried again, what is said when it fails.

Any server that answers ``POST URL/chat/completions`` will do. What it does not know (``logprobs``, a temperature, a
seed, a system's message) is found out at the first call and left out from then on. The key is read from the environment
when a connection is opened; it is in no object, file or error.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self

from trimtab.errors import ConfigError, ModelError, did_you_mean

if TYPE_CHECKING:
    import httpx

TRIES = 6
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 120.0
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Replies after which the same question may be answered a little later."""

TOP = 20  # the most that OpenAI and vLLM give
KNOWN: Mapping[str, re.Pattern[str]] = {
    "logprobs": re.compile(r"logprobs", re.IGNORECASE),
    "max_tokens": re.compile(r"max_tokens", re.IGNORECASE),
    "temperature": re.compile(r"temperature", re.IGNORECASE),
    "seed": re.compile(r"\bseed\b", re.IGNORECASE),
    "system": re.compile(r"system[ _]?(?:role|message|prompt|instruction)|role.{0,20}system", re.IGNORECASE),
}
"""What an endpoint may refuse to be sent, and how its error names it."""

_SECRET = re.compile(r"key|token|secret|password|signature|sig|auth", re.IGNORECASE)


class EndpointError(ModelError):
    """A call failed; ``status`` is that of the reply, if there was one, ``said`` what it said."""

    def __init__(
        self, sentence: str, *, status: int | None = None, said: str = "", retry_after: str | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.said, self.retry_after = status, said, retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a model answers: ``key`` names the environment variable that holds the key; ``refused`` is left out."""

    url: str
    model: str
    key: str | None = None
    timeout: float = 60.0
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call."""

    messages: Sequence[Mapping[str, str]]
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of a reply, and what might have stood in its place: (text, log-probability), itself among them."""

    text: str
    likely: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back; ``tokens`` is empty where the endpoint tells no probabilities."""

    text: str
    finish: str | None = None
    tokens: tuple[Token, ...] = ()


def check_url(url: str) -> str:
    """Return an endpoint's address without a slash at its end.

    Errors: ConfigError for one that is not http(s), or that holds what looks like a secret: it would be written to the
    run's files.
    """
    import httpx

    try:
        found = httpx.URL(url.strip())
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"{url!r} is no address ({error}); http://127.0.0.1:8000/v1, for instance") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise ConfigError(f"{url!r} is no http address; http://127.0.0.1:8000/v1, for instance")
    if found.userinfo or any(_SECRET.search(name) for name in found.params):
        raise ConfigError(
            f"the address at {found.host} holds a password or a key, which the run's files would show; put it into an "
            "environment variable and name that in 'key'"
        )
    return str(found.copy_with(path=found.path.rstrip("/") or "/", fragment=None)).rstrip("/")


def secret(name: str | None) -> str | None:
    """The key in an environment variable. Errors: ConfigError when it is not there, or no header can hold it."""
    if name is None:
        return None
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"the environment variable {name!r}, which should hold the judge's key, is not set")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(f"what the environment variable {name!r} holds is no key: it has spaces or odd characters")
    return value


def wait_before(retry: int, retry_after: str | None, *, now: float | None = None) -> float:
    """Seconds before try number ``retry`` (1, 2, ...): what the server asks for (seconds or a date), else doubling."""
    if retry_after is not None:
        try:
            asked = float(retry_after)
        except ValueError:
            try:
                asked = parsedate_to_datetime(retry_after).timestamp() - (time.time() if now is None else now)
            except ValueError:
                asked = math.nan
        if math.isfinite(asked):
            return max(0.0, asked)
    doubled: float = FIRST_WAIT_S * 2.0 ** (retry - 1)
    return min(LONGEST_WAIT_S, doubled)


class Caller:
    """An open connection to an endpoint, for several threads at once; ``stop`` ends their waiting."""

    def __init__(self, endpoint: Endpoint, *, parallel: int = 1) -> None:
        import httpx

        self.endpoint = endpoint
        self._secret = secret(endpoint.key)
        headers = {} if self._secret is None else {"Authorization": f"Bearer {self._secret}"}
        self._client: httpx.Client = httpx.Client(
            headers=headers, timeout=endpoint.timeout, limits=httpx.Limits(max_connections=parallel),
        )  # fmt: skip
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stop(self) -> None:
        """Let no thread wait for another try."""
        self._stopped.set()

    def ask(self, question: Question, *, tries: int = TRIES) -> Reply:
        """Ask, and ask again while the server is busy or cannot be reached.

        Errors: EndpointError, one sentence.
        """
        body = json.dumps(_body(self.endpoint, question)).encode()
        for retry in range(1, tries + 1):
            try:
                return self._post(body)
            except EndpointError as error:
                if retry == tries or not (error.status is None or error.status in AGAIN):
                    raise
                wait = wait_before(retry, error.retry_after)
                if wait > LONGEST_WAIT_S:
                    raise EndpointError(
                        f"{error}; it asks to wait {wait:.0f} s: come back then, what it has judged is kept",
                        status=error.status,
                    ) from None
                if self._stopped.wait(wait):
                    raise
        raise AssertionError  # the last try returns or raises

    def models(self) -> list[str]:
        """The names of the models that are there, as far as the endpoint tells."""
        import httpx

        try:
            listed = self._client.get(_at(self.endpoint.url, "models")).json()
            return [str(model["id"]) for model in listed["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []

    def _post(self, body: bytes) -> Reply:
        """Send a body once. Without a status the error is that the server was not reached, or too slow."""
        import httpx

        url = self.endpoint.url
        try:
            response = self._client.post(
                _at(url, "chat/completions"), content=body, headers={"Content-Type": "application/json"}
            )
        except httpx.TimeoutException:
            raise EndpointError(f"{url}: no reply within {self.endpoint.timeout:g} s") from None
        except httpx.HTTPError as error:
            raise EndpointError(
                f"{url} cannot be reached ({self._clean(str(error) or type(error).__name__)})"
            ) from None
        if response.status_code != 200:
            told = self._told(response)
            raise EndpointError(
                f"{url} answers {response.status_code}: {told}",
                status=response.status_code, said=told, retry_after=response.headers.get("Retry-After"),
            )  # fmt: skip
        try:
            return _read(response.json())
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise EndpointError(
                f"{url}: what came back is no chat completion; is the address whole? It often ends in /v1", status=200
            ) from None

    def _told(self, response: httpx.Response) -> str:
        """What a reply says of its failure, as one line without the key."""
        try:
            said: Any = response.json()
        except ValueError:
            said = response.text
        for name in ("error", "message", "detail"):
            if isinstance(said, dict) and name in said:
                said = said[name]
        return self._clean(said if isinstance(said, str) else json.dumps(said))

    def _clean(self, text: str) -> str:
        if self._secret is not None:
            text = text.replace(self._secret, "***")
        line = " ".join(text.split())
        return "".join(c if c.isprintable() else "?" for c in line)[:300] or "nothing"


def probe(endpoint: Endpoint, question: Question) -> tuple[Endpoint, Reply]:
    """Ask once, leaving out what the endpoint refuses; return it as it is to be asked from now on, and its reply.

    A server that is not there is not waited for. Errors: EndpointError, with what is probably meant.
    """
    while True:
        with Caller(endpoint) as caller:
            try:
                reply = caller.ask(question, tries=1)
            except EndpointError as error:
                if error.status in (401, 403):
                    held = "no key was sent; name its environment variable in 'key'"
                    raise EndpointError(
                        f"{error} ({held if endpoint.key is None else f'the key is that in {endpoint.key!r}'})",
                        status=error.status,
                    ) from None
                told = (name for name, words in KNOWN.items() if words.search(error.said))
                name = next((name for name in told if name not in endpoint.refused), None)
                if error.status in (400, 422) and name is not None:
                    endpoint = replace(endpoint, refused=(*endpoint.refused, name))
                    continue
                models = caller.models() if error.status in (400, 404, 422) else []
                if models and endpoint.model not in models:
                    raise EndpointError(
                        f"{endpoint.url} has no model {endpoint.model!r}{did_you_mean(endpoint.model, models)}",
                        status=error.status,
                    ) from None
                if error.status in AGAIN:  # it is there, and busy
                    return endpoint, caller.ask(question)
                raise
            return endpoint, reply


def _at(url: str, path: str) -> str:
    """An address below an endpoint's; what stands behind a question mark stays there."""
    import httpx

    whole = httpx.URL(url)
    return str(whole.copy_with(path=f"{whole.path.rstrip('/')}/{path}"))


def _body(endpoint: Endpoint, question: Question) -> dict[str, Any]:
    refused = endpoint.refused
    messages = [dict(message) for message in question.messages]
    if "system" in refused:
        text = "\n\n".join(message["content"] for message in messages)
        messages = [{"role": "user", "content": text}]
    body: dict[str, Any] = {"model": endpoint.model, "messages": messages}
    body["max_completion_tokens" if "max_tokens" in refused else "max_tokens"] = question.max_tokens
    if "temperature" not in refused:
        body["temperature"] = question.temperature
    if "seed" not in refused:
        body["seed"] = question.seed
    if "logprobs" not in refused:
        body |= {"logprobs": True, "top_logprobs": TOP}
    return body


def _read(said: Any) -> Reply:
    """A chat completion's first choice; any of the errors of reading JSON where it is none."""
    choice = said["choices"][0]
    text = choice["message"].get("content")
    if not isinstance(text, str | None):
        raise TypeError(text)
    told = choice.get("logprobs")
    rows = (told.get("content") or []) if isinstance(told, dict) else []
    return Reply(text=text or "", finish=choice.get("finish_reason"), tokens=tuple(map(_token, rows)))


def _token(row: Mapping[str, Any]) -> Token:
    own = (str(row["token"]), row.get("logprob"))
    listed = [(str(other["token"]), other.get("logprob")) for other in row.get("top_logprobs") or []]
    if own[0] not in [text for text, _ in listed]:
        listed.append(own)
    likely = tuple((text, float(number)) for text, number in listed if number is not None)
    return Token(text=own[0], likely=likely)
