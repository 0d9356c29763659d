"""What OpenAI's clients send and read: requests checked, answers and their streams written, errors in one shape.

What would change the answer and is not done here is refused by name; what is unknown or changes nothing is let pass.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trimtab.errors import TrimtabError
from trimtab.records.types import Finish, Message
from trimtab.serving.text import UNREADABLE
from trimtab.serving.worker import Likely, Piece

MAX_STOPS = 16
TOP = 20

REFUSED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "web_search_options": (),
    "reasoning_effort": ("none",), "verbosity": (), "logit_bias": ({},), "presence_penalty": (0,),
    "frequency_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,), "min_tokens": (0,), "ignore_eos": (False,),
    "stop_token_ids": ([],), "best_of": (1,), "echo": (False,), "suffix": ("",), "chat_template": (),
    "chat_template_kwargs": ({},), "add_generation_prompt": (True,), "continue_final_message": (False,),
    "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (), "structured_outputs": (),
}  # fmt: skip
"""Options that would change the answer, with the values at which they change nothing (``null`` is one of them)."""


class RequestError(TrimtabError):
    """A request that gets no answer: the status and OpenAI's ``error`` object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The reply's JSON."""
        kind = {429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class ChatMessage(BaseModel):
    """One turn; parts of text are joined, a developer's is the system's."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("only parts of text can be read here: {'type': 'text', 'text': ...}")
        return "".join(map(str, parts))

    @property
    def message(self) -> Message:
        """As the chat template takes it."""
        return Message(role="system" if self.role == "developer" else self.role, content=self.content)


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


class ModelRequest(BaseModel):
    """What both kinds of request have in common; ``None`` is as good as not given."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    n: Annotated[int | None, Field(ge=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, sent: Any) -> Any:
        try:
            json.dumps(sent if isinstance(sent, dict) else None, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("the body holds half a character (a lone surrogate)") from None
        return sent

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings.

        Errors: RequestError for too many, or an empty one.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOPS or not all(stops):
            raise RequestError(400, f"stop: at most {MAX_STOPS} strings, and none that is empty", param="stop")
        return stops

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_options(self) -> None:
        """Refuse, by RequestError, what would change the answer and is not done here."""
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED and value is not None and value not in REFUSED[name]:
                raise RequestError(400, f"{name} is not supported by this server", param=name, code="unsupported")


class ChatRequest(ModelRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=TOP)] = None

    @property
    def top(self) -> int | None:
        """How many alternatives to each token are asked for; ``None``: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(ModelRequest):
    """``POST /v1/completions``: one prompt, as text or as token ids."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: None = None

    @property
    def only_prompt(self) -> str | list[int]:
        """The prompt.

        Errors: RequestError for several.
        """
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        if prompt and all(isinstance(token, int) for token in prompt):
            return [token for token in prompt if isinstance(token, int)]
        if len(prompt) == 1 and not isinstance(prompt[0], int):
            return prompt[0]
        raise RequestError(400, f"prompt: one prompt a request, not {len(prompt)}", param="prompt")


def sentence(errors: Sequence[Mapping[str, Any]]) -> RequestError:
    """The first thing that pydantic found, as an error with its place."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', message)}")
    if first["type"] == "value_error" and not place:
        return RequestError(400, message)
    if not place:
        return RequestError(400, "the body must be a JSON object, sent as application/json")
    return RequestError(400, f"{place}: {message[:1].lower()}{message[1:]}", param=place)


class Reply:
    """Writes one request's answers: whole, or as the events of a stream."""

    def __init__(self, kind: Literal["chat", "completion"], model: str, fingerprint: str, prompt_tokens: int) -> None:
        self.chat = kind == "chat"
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.model, self.fingerprint, self.prompt_tokens = model, fingerprint, prompt_tokens
        self.created = int(time.time())

    def _frame(self, choices: list[dict[str, Any]], *, stream: bool) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if stream and self.chat else kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def _usage(self, counts: Iterable[int]) -> dict[str, int]:
        completion = sum(counts)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    def _choice(self, index: int, text: str, likely: Sequence[Likely], finish: Finish | None, key: str) -> Any:
        said: Any = {key: {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        logprobs = {"content": [_likely(own) for own in likely], "refusal": None} if likely else None
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}

    def whole(self, pieces: Sequence[Piece], n: int) -> dict[str, Any]:
        """The answer to a request that is not streamed, out of all its pieces."""
        choices, counts = [], []
        for i in range(n):
            own = [piece for piece in pieces if piece.choice == i]
            likely = [token for piece in own for token in piece.likely]
            choices.append(self._choice(i, "".join(p.text for p in own), likely, own[-1].finish, "message"))
            counts.append(own[-1].num_tokens)
        return {**self._frame(choices, stream=False), "usage": self._usage(counts)}

    def begin(self, n: int, *, usage: bool) -> list[str]:
        """The first events: who speaks."""
        return [self._event([self._choice(i, "", (), None, "delta")], usage) for i in range(n)] if self.chat else []

    def piece(self, piece: Piece, *, usage: bool) -> list[str]:
        """The events of a piece: its words, then how the answer ended."""
        events = []
        if piece.text or piece.likely:
            choice = self._choice(piece.choice, piece.text, piece.likely, None, "delta")
            if self.chat:
                choice["delta"] = {"content": piece.text}
            events.append(self._event([choice], usage))
        if piece.finish is not None:
            choice = self._choice(piece.choice, "", (), piece.finish, "delta")
            if self.chat:
                choice["delta"] = {}
            events.append(self._event([choice], usage))
        return events

    def end(self, counts: Iterable[int], *, usage: bool) -> list[str]:
        """The last events."""
        counted = [_data({**self._frame([], stream=True), "usage": self._usage(counts)})] if usage else []
        return [*counted, "data: [DONE]\n\n"]

    def _event(self, choices: list[dict[str, Any]], usage: bool) -> str:
        return _data({**self._frame(choices, stream=True), **({"usage": None} if usage else {})})


def _data(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def error_event(error: RequestError) -> str:
    """An error in the middle of a stream."""
    return _data(error.body)


def _likely(token: Likely) -> dict[str, Any]:
    top = [_token(text, logp) for text, logp in token.others]
    return {**_token(token.text, token.logp), "top_logprobs": top}


def _token(text: str, logp: float) -> dict[str, Any]:
    """A token that is a part of a character has no text of its own, and its bytes are not known."""
    return {"token": text, "logprob": logp, "bytes": None if UNREADABLE in text else list(text.encode())}
