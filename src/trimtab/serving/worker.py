"""Continuous batching: one thread owns the models; requests join the running rows between two steps and leave freely.

Every model has a table of rows (``model.sampler.Table``). A step decodes one token in every table that holds rows, so
rows of one model run side by side and models take turns: with rows of g models a step costs g passes. Waiting answers
take free slots in the order in which they came; as every answer ends at its ``max_tokens``, none waits for ever.

Answer i of a request draws from (seed, i) alone, so it does not depend on what runs beside it, beyond the rounding of
matmuls of other shapes.
"""

from __future__ import annotations

import copy
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.model.sampler import Prefilled, Row, Sampling, Table
from trimtab.records.types import Finish
from trimtab.serving.models import Served
from trimtab.serving.text import Detokeniser, Stops

PREFILL_TOKENS = 2048  # prompts of so many tokens together are run between two steps; a longer one runs alone
Decode = Callable[[Sequence[int]], str]


class BusyError(TrimtabError):
    """Too many answers are waiting; ``seconds`` is a guess at when to ask again."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} answers are waiting already; try again in about {seconds} s")
        self.seconds = seconds


class StoppedError(TrimtabError):
    """The worker takes no more requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked of a model: ``n`` answers to one prompt.

    ``top`` is how many alternatives to each token are wanted; ``None``: no log-probabilities at all.
    """

    model: str
    prompt: tuple[int, ...]
    n: int
    sampling: Sampling
    seed: int
    stops: tuple[str, ...] = ()
    top: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Likely:
    """A token, its log-probability in the model's own distribution, and the likeliest ones in its place."""

    text: str
    logp: float
    others: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The next words of one answer; the last piece says how it ended."""

    choice: int
    text: str
    num_tokens: int
    likely: tuple[Likely, ...] = ()
    finish: Finish | None = None


Hear = Callable[[Piece | None], object]


@dataclass(slots=True, eq=False)
class Job:
    """A request in the house; ``hear`` is called in the worker's thread, with ``None`` if the worker has died."""

    ask: Ask
    hear: Hear
    cancelled: bool = False
    prefilled: Prefilled | None = None
    begun: float = 0.0  # when it got its first slot

    def cancel(self) -> None:
        """Say that nobody waits any more; the slots are free before the next step."""
        self.cancelled = True


class _Writing:
    """One answer of a job, waiting or running."""

    def __init__(self, job: Job, choice: int, decode: Decode) -> None:
        self.job, self.decode = job, decode
        self.row = Row.begin(job.ask.sampling, job.ask.seed, 0, choice)
        self.text, self.stops = Detokeniser(decode), Stops(job.ask.stops)
        self.likely: list[Likely] = []
        self.finish: Finish | None = None
        if job.ask.top is not None:
            self.row.watch = self._watch

    def _watch(self, token: int, logits: Tensor) -> None:
        """Note the token's log-probability at temperature 1, and the likeliest tokens'."""
        assert self.job.ask.top is not None
        logps = logits.log_softmax(-1)
        best = logps.topk(min(self.job.ask.top, len(logps)))
        others = tuple((self.decode([t]), p) for t, p in zip(best.indices.tolist(), best.values.tolist(), strict=True))
        self.likely.append(Likely(text=self.decode([token]), logp=float(logps[token]), others=others))

    def news(self) -> Piece | None:
        """What has become readable since the last time."""
        text = ""
        for token in self.row.tokens[len(self.text.tokens) :]:
            text += self._show(self.text.feed(token))
            if self.finish is not None:
                break
        if self.finish is None and self.row.finish is not None:
            text += self._show(self.text.flush())
            if self.finish is None:
                text += self.stops.flush()
                self.finish = self.row.finish
        if not (text or self.finish):
            return None
        likely, self.likely = tuple(self.likely), []
        return Piece(
            choice=self.row.answer, text=text, num_tokens=len(self.text.tokens), likely=likely, finish=self.finish
        )

    def _show(self, piece: str) -> str:
        shown, stopped = self.stops.feed(piece)
        if stopped:
            self.finish = "stop"
        return shown


class Worker:
    """Answers requests with ``slots`` rows side by side; ``waiting`` more may wait.

    ``run`` is the thread's whole life, until ``stop``; it raises what goes wrong. ``submit`` may be called from other
    threads.
    """

    def __init__(self, models: Mapping[str, Served], *, slots: int = 16, waiting: int = 64) -> None:
        self.models, self.slots, self.places = models, slots, slots + waiting
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # over what submit and run both write
        self._in_house = 0
        self._open = True
        self._seconds = 1.0  # that an answer takes: a running mean
        self._waiting: deque[_Writing] = deque()
        self._running: list[_Writing] = []
        self._tables = {name: Table(own.trunk, own.trunk.chat.stop) for name, own in models.items()}
        shared = {id(own.trunk.chat.tokenizer): _decoder(own) for own in models.values()}
        self._decode = {name: shared[id(own.trunk.chat.tokenizer)] for name, own in models.items()}

    @property
    def load(self) -> tuple[int, int]:
        """How many answers are being written, and how many wait."""
        running = len(self._running)
        return running, max(0, self._in_house - running)

    def submit(self, ask: Ask, hear: Hear) -> Job:
        """Take a request in. ``hear`` gets the pieces of all its answers, each with a last one.

        Errors: BusyError when there is no room, StoppedError when the worker is ending or has failed.
        """
        job = Job(ask, hear)
        with self._lock:
            if not self._open:
                raise StoppedError("the model worker has stopped")
            if self._in_house + ask.n > self.places:
                waiting = max(0, self._in_house - self.slots)
                seconds = math.ceil(self._seconds * (1 + waiting / self.slots))
                raise BusyError(waiting, min(60, max(1, seconds)))
            self._in_house += ask.n
            self._inbox.put(job)
        return job

    def stop(self) -> None:
        """Let ``run`` return after the step that it is in."""
        with self._lock:
            self._open = False
            self._inbox.put(None)

    @torch.inference_mode()
    def run(self) -> None:
        """Work until told to stop. However it ends, nobody is left waiting."""
        try:
            while self._take():
                self._forget()
                self._admit()
                for table in self._tables.values():
                    if table.rows:
                        table.keep_live()
                    if table.rows:
                        table.step()
                self._tell()
        finally:
            with self._lock:
                self._open = False
            self._take()
            for job in {id(w.job): w.job for w in (*self._running, *self._waiting)}.values():
                job.hear(None)

    def _take(self) -> bool:
        """Move what has come in into the queue, waiting for it if there is nothing to do; tell whether to go on."""
        if not (self._running or self._waiting):
            for table in self._tables.values():
                table.keep_live()  # there is none: give the memory back
        while True:
            try:
                job = self._inbox.get(block=self._open and not (self._running or self._waiting))
            except queue.Empty:
                return True
            if job is None:
                return False
            decode = self._decode[job.ask.model]
            self._waiting += (_Writing(job, i, decode) for i in range(job.ask.n))

    def _forget(self) -> None:
        """Let go of answers that nobody waits for any more."""
        for writing in self._running:
            if writing.job.cancelled:
                self._tables[writing.job.ask.model].drop(writing.row)
        before = len(self._running) + len(self._waiting)
        self._running = [w for w in self._running if not w.job.cancelled]
        self._waiting = deque(w for w in self._waiting if not w.job.cancelled)
        self._leave(before - len(self._running) - len(self._waiting))

    def _leave(self, answers: int) -> None:
        with self._lock:
            self._in_house -= answers

    def _admit(self) -> None:
        """Give free slots to those who wait, in their order, and run their prompts: each request's once."""
        chosen: list[_Writing] = []
        tokens = 0
        while self._waiting and len(self._running) + len(chosen) < self.slots:
            job = self._waiting[0].job
            fresh = job.prefilled is None and all(w.job is not job for w in chosen)
            if fresh and tokens and tokens + len(job.ask.prompt) > PREFILL_TOKENS:
                break
            tokens += len(job.ask.prompt) if fresh else 0
            chosen.append(self._waiting.popleft())
        self._running += chosen
        for writing in chosen:
            writing.job.begun = writing.job.begun or time.monotonic()
        for name, table in self._tables.items():
            own = [w for w in chosen if w.job.ask.model == name]
            fresh_jobs = list({id(w.job): w.job for w in own if w.job.prefilled is None}.values())
            if fresh_jobs:
                made = table.prefill([job.ask.prompt for job in fresh_jobs])
                for job, prefilled in zip(fresh_jobs, made, strict=True):
                    job.prefilled = prefilled
            table.make_free(len(own))
            for slot, writing in zip(table.free, own, strict=False):
                assert writing.job.prefilled is not None
                table.put(slot, writing.row, writing.job.prefilled)
        waiting = {id(w.job) for w in self._waiting}
        for writing in chosen:
            if id(writing.job) not in waiting:
                writing.job.prefilled = None  # its keys and values are in the table now
        if chosen:
            self._tell()

    def _tell(self) -> None:
        """See off what has ended, then pass on what has been written: who hears of an end finds the room free."""
        news = [(writing, piece) for writing in self._running if (piece := writing.news()) is not None]
        ended = [writing for writing, piece in news if piece.finish is not None]
        for writing in ended:
            self._tables[writing.job.ask.model].drop(writing.row)  # a stop string ends it before its row does
            self._seconds += 0.2 * (time.monotonic() - writing.job.begun - self._seconds)
        self._running = [w for w in self._running if w.finish is None]
        self._leave(len(ended))
        for writing, piece in news:
            writing.job.hear(piece)


def _decoder(served: Served) -> Decode:
    """The model's own way from tokens to text, on a tokenizer that no other thread uses."""
    chat = copy.copy(served.trunk.chat)
    chat.tokenizer = copy.deepcopy(chat.tokenizer)
    return chat.decode
