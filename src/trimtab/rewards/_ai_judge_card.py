"""Which judge it is, how it is asked once, and the question that finds out whether it is there at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trimtab.artifacts import digest_of
from trimtab.errors import ModelError
from trimtab.records.types import Message
from trimtab.rewards._ai_judge_http import Caller, Endpoint, Question, Reply, probe
from trimtab.rewards._ai_judge_words import Call, Showing, code_of, messages, read_reply
from trimtab.seeds import derive

FORMAT = 1  # raise when the same card and texts would be asked otherwise: kept verdicts are then another judge's
TRIES = 4
WARMTH = 0.7  # of later tries: at temperature 0 another seed changes nothing
SHORT = 16  # tokens of a reply that is one letter
GUIDE = "Which answer is more helpful, more truthful and better written?"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCard:
    """All that is known of a judge, but its key."""

    url: str
    model: str
    guide: str = GUIDE
    reason: bool = False
    tokens: int = 1024
    rivals: int = 4
    against: bool = False
    key: str | None = None
    parallel: int = 8
    timeout: float = 60.0
    seed: int = 0
    refused: tuple[str, ...] = ()

    @property
    def endpoint(self) -> Endpoint:
        """Whom to ask."""
        return Endpoint(url=self.url, model=self.model, key=self.key, timeout=self.timeout, refused=self.refused)

    @property
    def digest(self) -> str:
        """The identity of whatever decides a verdict: 64 hexadecimal digits."""
        about = [FORMAT, self.url, self.model, self.guide, self.reason, self.seed, self.refused]
        return digest_of([*about, self.tokens if self.reason else SHORT])

    @property
    def rater(self) -> str:
        """Its name in verdicts, ``judge:model@hash``."""
        return f"judge:{self.model}@{self.digest[:12]}"


def question(card: JudgeCard, showing: Showing, code: str, attempt: int) -> Question:
    """Try number ``attempt`` (from 0) of one call: temperature 0, and a seed of the judge, the showing and the try."""
    return Question(
        messages=messages(showing, card.guide, code, reason=card.reason),
        max_tokens=card.tokens if card.reason else SHORT,
        temperature=WARMTH if attempt else 0.0,
        seed=derive(card.seed, "judge", showing.digest, attempt) % 2**31,
    )


def no_verdict(card: JudgeCard, reply: Reply) -> str:
    """Say that a judge gave no verdict, what it said instead, and what would help."""
    hint = ""
    if reply.finish == "length":
        hint = (
            f"; it was cut at {card.tokens} tokens (raise tokens)"
            if card.reason
            else f"; it was cut at {SHORT} tokens (a model that thinks before it answers needs reason: true)"
        )
    return f"no verdict in {TRIES} replies, the last of which is {reply.text[-200:]!r}{hint}"


def ask(card: JudgeCard, caller: Caller, showing: Showing) -> Call:
    """One showing's verdict; a reply without one is asked for again, a few times.

    Errors: ModelError, one sentence, for an endpoint that fails, and where no reply has a verdict.
    """
    code, reply = code_of(showing, card.seed), Reply(text="")
    for attempt in range(TRIES):
        reply = caller.ask(question(card, showing, code, attempt))
        call = read_reply(reply, code, reason=card.reason)
        if call is not None:
            return call
    raise ModelError(no_verdict(card, reply))


TRIAL = Showing(
    prompt=(Message(role="user", content="What is the capital of France?"),),
    first="The capital of France is Paris.",
    second="I do not know.",
)


def try_out(card: JudgeCard) -> JudgeCard:
    """Ask one easy question; return the card with what the endpoint has to be spared.

    Errors: ModelError, one sentence, for an address where nobody answers, a model that is not there, a key that is
    refused, and a reply without a verdict.
    """
    code, reply = code_of(TRIAL, card.seed), Reply(text="")
    for attempt in range(TRIES):
        asked = question(card, TRIAL, code, attempt)
        endpoint, reply = probe(card.endpoint, asked)
        card = replace(card, refused=endpoint.refused)
        call = read_reply(reply, code, reason=card.reason)
        if call is not None:
            tells = call.chance is not None or "logprobs" in card.refused
            return card if tells else replace(card, refused=(*card.refused, "logprobs"))
    raise ModelError(f"{card.url}: {no_verdict(card, reply)}")
