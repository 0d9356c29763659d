"""The HTTP side: OpenAI's routes over one worker. Nothing here touches a model but its tokenizer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from trimtab import __version__
from trimtab.errors import DataError, did_you_mean
from trimtab.model.sampler import Sampling
from trimtab.serving import wire
from trimtab.serving.models import Served
from trimtab.serving.wire import ChatRequest, CompletionRequest, Reply, RequestError
from trimtab.serving.worker import Ask, BusyError, Piece, StoppedError, Worker

MAX_BODY_BYTES = 4 * 2**20
DEFAULT_TOKENS = 1024  # of an answer when the request does not say
GONE = 499  # the client closed the connection: nobody reads this
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


class Listener:
    """One request's answers, as they come out of the worker's thread; left early, nothing more is written."""

    def __init__(self, worker: Worker, ask: Ask) -> None:
        """Send the request in.

        Errors: RequestError when the worker does not take it.
        """
        loop = asyncio.get_running_loop()
        self.ask = ask
        self._heard: asyncio.Queue[Piece | None] = asyncio.Queue()
        try:
            self._job = worker.submit(ask, lambda piece: loop.call_soon_threadsafe(self._heard.put_nowait, piece))
        except BusyError as error:
            raise RequestError(429, str(error), code="busy", retry_after=error.seconds) from None
        except StoppedError as error:
            raise RequestError(503, str(error), code="stopped") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._job.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces of all answers."""
        left = self.ask.n
        while left:
            piece = await self._heard.get()
            if piece is None:
                raise RequestError(500, "the model worker failed while it was answering", code="worker_failed")
            left -= piece.finish is not None
            yield piece


def create_app(worker: Worker, *, hosts: tuple[str, ...] | None = LOOPBACK) -> FastAPI:
    """The routes over a worker. ``hosts`` are the names that a request may call this server by (``None``: any).

    A page in a browser could otherwise reach it through a name of its own that leads to this machine.
    """
    app = FastAPI(
        title="Trimtab model worker", version=__version__, docs_url=None, redoc_url=None, max_body_size=MAX_BODY_BYTES
    )
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    started = int(time.time())

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(wire.sentence(error.errors()).body, 400)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(RequestError(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the worker lives, and how much it has to do."""
        running, waiting = worker.load
        return {"status": "ok", "running": running, "waiting": waiting, "slots": worker.slots}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [_card(own, started) for own in worker.models.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _card(_find(worker.models, name), started)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        served = _find(worker.models, body.model)
        try:
            prompt = served.trunk.chat.prompt([message.message for message in body.messages])
        except DataError as error:
            raise RequestError(400, str(error), param="messages") from None
        ask = _ask(worker, served, body, prompt, body.max_completion_tokens or body.max_tokens, body.top)
        return await _answer(worker, ask, body, "chat", served, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        served = _find(worker.models, body.model)
        prompt = body.only_prompt
        tokenizer = served.trunk.chat.tokenizer
        tokens = tuple(tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)
        if not all(0 <= token < len(tokenizer) for token in tokens):
            raise RequestError(400, f"prompt: token ids are from 0 to {len(tokenizer) - 1}", param="prompt")
        ask = _ask(worker, served, body, tokens, body.max_tokens or 16, None)
        return await _answer(worker, ask, body, "completion", served, request)

    return app


def _find(models: Mapping[str, Served], name: str) -> Served:
    if name not in models:
        said = f"no model {name!r} is served here{did_you_mean(name, models)}"
        raise RequestError(404, said, param="model", code="model_not_found")
    return models[name]


def _card(served: Served, started: int) -> dict[str, Any]:
    """A model as OpenAI's list has it, with what identifies it and its window."""
    return {
        "id": served.name, "object": "model", "created": started, "owned_by": "trimtab",
        "identity": served.identity, "max_model_len": served.window,
    }  # fmt: skip


def _ask(
    worker: Worker,
    served: Served,
    body: wire.ModelRequest,
    prompt: tuple[int, ...],
    max_tokens: int | None,
    top: int | None,
) -> Ask:
    """What the worker is asked for.

    Errors: RequestError for what it cannot do: options, a prompt or a length that do not fit.
    """
    body.check_options()
    n, room = body.n or 1, served.window - len(prompt)
    if not prompt:
        raise RequestError(400, "the prompt is empty", param="prompt")
    if n > worker.slots:
        raise RequestError(400, f"n: {n} answers at once, and this server writes at most {worker.slots}", param="n")
    if room < 1:
        raise RequestError(
            400, f"the prompt has {len(prompt)} tokens, and prompt and answer together may have {served.window}",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip
    if max_tokens is not None and max_tokens > room:
        raise RequestError(
            400, f"max_tokens: {max_tokens} after a prompt of {len(prompt)} tokens, and both together may have "
            f"{served.window}", param="max_tokens", code="context_length_exceeded",
        )  # fmt: skip
    sampling = Sampling(
        max_tokens=min(DEFAULT_TOKENS, room) if max_tokens is None else max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
    )
    seed = secrets.randbits(63) if body.seed is None else body.seed
    return Ask(model=served.name, prompt=prompt, n=n, sampling=sampling, seed=seed, stops=body.stops, top=top)


async def _answer(
    worker: Worker, ask: Ask, body: wire.ModelRequest, kind: Any, served: Served, request: Request
) -> Response:  # fmt: skip
    """Send the request in; answer it whole, or piece by piece."""
    listener = Listener(worker, ask)
    reply = Reply(kind, served.name, f"trimtab-{__version__}-{served.identity[:12]}", len(ask.prompt))
    headers = {"X-Trimtab-Seed": str(ask.seed), "Cache-Control": "no-store"}
    if body.stream:
        events = _events(listener, reply, usage=body.wants_usage)
        await anext(events)  # it holds the listener now: whoever lets go of it, even unread, ends the request
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    with listener:
        whole = asyncio.ensure_future(_whole(listener, reply))
        gone = asyncio.ensure_future(_gone(request))
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not whole.done():
            whole.cancel()
            return Response(status_code=GONE)
        return JSONResponse(whole.result(), headers=headers)


async def _whole(listener: Listener, reply: Reply) -> dict[str, Any]:
    return reply.whole([piece async for piece in listener.pieces()], listener.ask.n)


async def _events(listener: Listener, reply: Reply, *, usage: bool) -> AsyncIterator[str]:
    """A stream, in server-sent events; nothing comes first."""
    counts = [0] * listener.ask.n
    with listener:
        yield ""
        for event in reply.begin(listener.ask.n, usage=usage):
            yield event
        try:
            async for piece in listener.pieces():
                counts[piece.choice] = piece.num_tokens
                for event in reply.piece(piece, usage=usage):
                    yield event
        except RequestError as error:  # too late for a status
            yield wire.error_event(error)
            return
    for event in reply.end(counts, usage=usage):
        yield event


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
