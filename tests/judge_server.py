"""A chat-completions endpoint of our own, on a real socket, whose verdict is a function of what it is sent."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Sent = dict[str, Any]
Handle = Callable[[Sent], tuple[int, Any] | tuple[int, Any, Mapping[str, str]]]


def fenced(sent: Sent, name: str) -> str:
    """What stands between the marks of one call; there is exactly one such place."""
    text = sent["messages"][-1]["content"]
    (code,) = set(re.findall(r"<answer-A-([0-9a-f]{12})>", "\n".join(m["content"] for m in sent["messages"][:1])))
    (found,) = re.findall(rf"^<{name}-{code}>\n(.*?)\n</{name}-{code}>$", text, re.DOTALL | re.MULTILINE)
    return str(found)


def code_in(sent: Sent) -> str:
    """The code of the call."""
    return re.findall(r"<answer-A-([0-9a-f]{12})>", sent["messages"][0]["content"])[0]


def vowels(text: str) -> int:
    return sum(c in "aeiou" for c in text.lower())


def completion(text: str, *, finish: str = "stop", tokens: list[tuple[str, dict[str, float]]] | None = None) -> Any:
    """A chat completion; ``tokens`` are (text, {alternative: probability})."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if tokens is not None:
        choice["logprobs"] = {
            "content": [
                {
                    "token": token,
                    "logprob": math.log(likely[token]),
                    "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in likely.items()],
                }
                for token, likely in tokens
            ]
        }
    return {"object": "chat.completion", "model": "vowels", "choices": [choice]}


def by_vowels(*, soft: bool = True, bias: float = 0.0, scale: float = 0.5, reason: bool = False) -> Handle:
    """The answer with more vowels is better; ``bias`` (in vowels) is for the answer shown first."""

    def handle(sent: Sent) -> tuple[int, Any]:
        lead = vowels(fenced(sent, "answer-A")) - vowels(fenced(sent, "answer-B")) + bias
        letter = "A" if lead > 0 else "B" if lead < 0 else "C"
        if reason:
            text = f"I counted.\nVerdict {code_in(sent)}: {letter}"
            return 200, completion(text)
        if not soft or not sent.get("logprobs"):
            return 200, completion(letter)
        first = 1 / (1 + math.exp(-scale * lead))
        letter = "A" if first >= 0.5 else "B"
        return 200, completion(letter, tokens=[(letter, {"A": first, "B": 1 - first})])

    return handle


@dataclass
class JudgeServer:
    """Answers ``POST /v1/chat/completions`` by ``handle``, keeps what it was sent, and lists its model."""

    handle: Handle = field(default_factory=by_vowels)
    models: tuple[str, ...] = ("vowels",)
    sent: list[Sent] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.sent.append(body)
                    outer.headers.append(dict(self.headers))
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                if self.path != "/v1/chat/completions":
                    self.reply(404, "<html>nothing here</html>")
                elif body.get("model") not in outer.models:
                    self.reply(404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}})
                else:
                    self.reply(*outer.handle(body))
                with outer._lock:
                    outer._now -= 1

            def do_GET(self) -> None:
                found = self.path == "/v1/models"
                self.reply(200, {"data": [{"id": name} for name in outer.models]}) if found else self.reply(404, {})

            def reply(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in (headers or {}).items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                with suppress(BrokenPipeError, ConnectionResetError):  # who asked did not wait
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"
