"""A server in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx

SERVE_MODEL = (sys.executable, "-m", "trimtab", "serve-model")
SLOTS, WAITING, WINDOW = 3, 2, 12_000
PATIENCE_S = 200  # this may run on a machine that has much else to do


class Server:
    """A started command; ``url`` is the address that it says it serves at."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        assert self.process.stdout is not None
        found = re.search(r"serving at (http://\S+)/v1", self.process.stdout.readline())
        if found is None:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not start: {self.said}")
        self.url = found[1]
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.errors.close()
        self.http.close()

    @property
    def said(self) -> str:
        """What it wrote to standard error."""
        self.errors.seek(0)
        return self.errors.read()

    @property
    def health(self) -> dict[str, Any]:
        return dict(self.http.get("/health").json())

    def settled(self) -> bool:
        """Wait until nothing is written and nothing waits."""
        return until(lambda: (self.health["running"], self.health["waiting"]) == (0, 0))

    def ask(self, **settings: Any) -> httpx.Response:
        """One chat completion, as JSON over plain HTTP."""
        return self.http.post("/v1/chat/completions", json=body(**settings))


def body(**settings: Any) -> dict[str, Any]:
    """A request that is whole; ``settings`` change it."""
    return {
        "model": "plain", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 4, **settings
    }  # fmt: skip


def until(holds: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Wait until something holds; tell whether it did in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
