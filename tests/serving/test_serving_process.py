"""How a server's process begins and ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest

from serving_process import PATIENCE_S, SERVE_MODEL, Server, body
from trimtab.cli import _served
from trimtab.errors import ConfigError
from trimtab.serving.server import is_loopback, listen

BROKEN = """
import sys
from trimtab.cli import main
from trimtab.serving import server

opened = server.open_models

def broken(*args, **settings):
    models = opened(*args, **settings)
    norm = models["base"].trunk.base.model.norm
    norm.weight.data = norm.weight.data[:7]
    return models

server.open_models = broken
sys.argv = ["trimtab", "serve-model", *sys.argv[1:]]
main()
"""
OPTIONS = ("--port", "0", "--dtype", "float32", "--window", "700")


def test_what_is_being_answered_is_answered_before_the_end(served_models: dict[str, Path]) -> None:
    # The end of standard input is a SIGTERM to itself: both are tested here.
    with Server([*SERVE_MODEL, str(served_models["base"]), *OPTIONS, "--until-stdin-ends"]) as server:
        settings = {"model": "base", "max_tokens": 600, "stream": True, "stream_options": {"include_usage": True}}
        with server.http.stream("POST", "/v1/chat/completions", json=body(**settings)) as reply:
            lines = reply.iter_lines()
            next(lines)
            assert server.process.stdin is not None
            server.process.stdin.close()
            *_, usage, done = [line for line in lines if line]
        assert done == "data: [DONE]"
        assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 600
        assert server.process.wait(PATIENCE_S) == 0
        assert server.said == ""


def test_a_worker_that_fails_ends_the_process_and_says_so(served_models: dict[str, Path]) -> None:
    with Server([sys.executable, "-c", BROKEN, str(served_models["base"]), *OPTIONS]) as server:
        with server.http.stream("POST", "/v1/chat/completions", json=body(model="base", stream=True)) as streamed:
            events = streamed.read().decode()
        assert "worker_failed" in events
        assert "[DONE]" not in events
        assert server.process.wait(PATIENCE_S) == 3
        assert "the model worker failed (RuntimeError: " in server.said
        with pytest.raises(httpx.ConnectError):
            server.http.get("/health")


def test_names(served_models: dict[str, Path], tmp_path: Path) -> None:
    base, red = str(served_models["base"]), str(served_models["red"])
    found = _served([base, red, f"other={red}"])
    assert {name: ref.base for name, ref in found.items()} == {"base": base, "red": base, "other": base}
    with pytest.raises(ConfigError, match="two models would be served as 'red'; name one of them: NAME="):
        _served([red, red])


def test_addresses() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            listen("127.0.0.1", port)
