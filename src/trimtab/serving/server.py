"""The process: a socket, the models, the worker's thread, and how it all ends.

SIGTERM or Ctrl-C: no new connections, what is being answered is answered, exit 0. A worker that fails: what is being
answered gets an error, and the process ends with a sentence and exit code 3, for whoever started it to start it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import uvicorn

from trimtab.config import ModelRef
from trimtab.errors import ConfigError, InvariantError
from trimtab.serving.app import LOOPBACK, create_app
from trimtab.serving.models import open_models
from trimtab.serving.worker import Worker

KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they close them and not we


def serve(
    refs: Mapping[str, ModelRef],
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    slots: int = 16,
    waiting: int = 64,
    window: int = 8192,
    dtype: str = "auto",
    drain_s: int = 30,
    until_stdin_ends: bool = False,
    ready: Callable[[str], None],
) -> None:
    """Serve models under their names until told to stop; ``ready`` hears the address (port 0: any free one).

    Errors: ConfigError for an address that cannot be had, ModelError for a model that cannot, InvariantError when the
    worker has failed.
    """
    listening = listen(host, port)
    with contextlib.closing(listening):
        worker = Worker(open_models(refs, window=window, dtype=dtype), slots=slots, waiting=waiting)
        app = create_app(worker, hosts=(*LOOPBACK, host) if is_loopback(host) else None)
        config = uvicorn.Config(
            app, lifespan="off", ws="none", log_level="warning", access_log=False, server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=drain_s,
        )  # fmt: skip
        if until_stdin_ends:
            threading.Thread(target=_stop_with_stdin, daemon=True).start()
        with _signals_end_quietly():
            asyncio.run(_run(uvicorn.Server(config), listening, worker, ready))


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, before anything slow is done."""
    with contextlib.ExitStack() as undo:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listening = undo.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        undo.pop_all()
    return listening


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _run(server: uvicorn.Server, listening: socket.socket, worker: Worker, ready: Callable[[str], None]) -> None:
    working = asyncio.create_task(asyncio.to_thread(worker.run))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if server.started:
        host, port = listening.getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    await asyncio.wait({working, serving}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await asyncio.wait({serving})
    worker.stop()
    await asyncio.wait({working})
    serving.result()
    if (error := working.exception()) is not None:
        logging.getLogger(__name__).error("the model worker failed", exc_info=error)
        raise InvariantError(f"the model worker failed ({type(error).__name__}: {error}); start it again") from error


@contextlib.contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """The server drains at a signal and then raises it once more: by that time it has done its work."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_with_stdin() -> None:
    """Stop when whoever started this process is gone, however it went: its end of the pipe is closed then."""
    while sys.stdin.buffer.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
