"""Sampling: prompts in, answers out, with the log-probabilities of the distribution that was really sampled from.

Each prompt is prefilled once for all its answers. Rows of a fixed table of slots then decode side by side; a row that
ends frees its slot for the next answer. Answer j of prompt i draws its uniform numbers from (seed, i, j) alone, so what
is sampled does not depend on how answers were put into slots, beyond the rounding of matmuls of other shapes.

``Table`` is the one decode loop, of rows that may each be sampled their own way: ``TorchSampler`` runs a batch through
it, ``serving`` lets requests come and go.

Letters: B slots, H heads, K key-value heads, D head size, V vocabulary, S longest sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trimtab.errors import ModelError
from trimtab.model.forward import hidden_states, run_decoder
from trimtab.model.trunk import Trunk
from trimtab.records.types import Finish
from trimtab.seeds import derive
from trimtab.tensors.tree import TokenGroup, pack

BUCKET = 32  # attention runs over a multiple of this many places, so that shapes repeat and memory does not creep


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. ``temperature`` 0 is greedy; ``top_p`` 1 and ``top_k`` 0 leave the distribution whole."""

    max_tokens: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0

    @property
    def distribution(self) -> tuple[float, float, int]:
        """What decides the distribution: rows that agree in it are drawn together."""
        return self.temperature, self.top_p, self.top_k


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One sampled answer. ``tokens`` ends with EOS exactly when ``finish`` is ``"stop"``.

    ``logps`` are those of the distribution sampled from (temperature, top-p and top-k applied); greedy reports those at
    temperature 1.
    """

    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Finish


class Sampler(Protocol):
    """Whatever turns token prompts into answers: this module, or an engine."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Sampled]]:
        """Return k answers for each prompt; ``progress`` hears the number of finished answers."""
        ...


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Pick one token a row by inverse CDF: logits (B, V), uniform (B,) in [0, 1] -> tokens (B,), logps (B,).

    The token is the first whose cumulative probability exceeds the uniform number, so one of probability 0 is never
    picked. A cumulative sum and a binary search: ``multinomial`` over a large vocabulary is some forty times slower on
    a CPU.
    """
    if sampling.temperature == 0.0:
        best = logits.argmax(-1)
        return best, F.log_softmax(logits, -1).gather(-1, best[:, None])[:, 0]
    scaled = logits / sampling.temperature
    tokens: Tensor | None = None
    if sampling.top_k > 0 or sampling.top_p < 1.0:
        scaled, tokens = _truncate(scaled, sampling)
    probability = F.softmax(scaled, dim=-1)
    cumulative = probability.cumsum(-1)
    total = cumulative[:, -1]
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, point[:, None], right=True).clamp_max(scaled.shape[-1] - 1)
    logps = probability.gather(-1, index)[:, 0].log()
    chosen = index if tokens is None else tokens.gather(-1, index)
    return chosen[:, 0], logps


def _truncate(scaled: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Keep the top-k tokens, then the fewest of these that hold ``top_p`` of their mass: (B, n) logits, token ids."""
    size = scaled.shape[-1]
    if sampling.top_k > 0:
        values, tokens = scaled.topk(min(sampling.top_k, size), dim=-1)
        log_total = torch.logsumexp(values, -1, keepdim=True)
    else:
        log_total = torch.logsumexp(scaled, -1, keepdim=True)
        values, tokens = scaled.topk(min(1024, size), dim=-1)
        if ((values - log_total).exp().sum(-1) < sampling.top_p).any():  # a flat row: the head was not enough
            values, tokens = scaled.sort(dim=-1, descending=True)
    if sampling.top_p < 1.0:
        probability = (values - log_total).exp()
        before = probability.cumsum(-1) - probability
        values = values.masked_fill(before >= sampling.top_p, -torch.inf)
    return values, tokens


class CacheView:
    """Keys and values of B slots; one new token a row per step. Slots become longer as they have to."""

    def __init__(self, slots: int, places: int, device: torch.device | str = "cpu") -> None:
        self.slots = slots
        self.places = -(-places // BUCKET) * BUCKET
        self.keys: dict[int, Tensor] = {}  # layer -> (B, K, S, D)
        self.values: dict[int, Tensor] = {}
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)  # (B,) tokens that stand in each slot
        self._rows = torch.arange(slots, device=device)
        self._masks: dict[int | None, Tensor] = {}  # window -> (B, 1, 1, S)

    def put(self, slot: int, kept: dict[int, tuple[Tensor, Tensor]], begin: int, length: int) -> None:
        """Copy a prefilled prompt (a stretch of a packed row) into a slot."""
        if length > self.places:
            self.resize(self.slots, length)
        for layer, (k, v) in kept.items():
            if layer not in self.keys:
                shape = (self.slots, k.shape[1], self.places, k.shape[3])
                self.keys[layer], self.values[layer] = k.new_zeros(shape), v.new_zeros((*shape[:3], v.shape[3]))
            self.keys[layer][slot, :, :length] = k[0, :, begin : begin + length]
            self.values[layer][slot, :, :length] = v[0, :, begin : begin + length]
        self.lengths[slot] = length

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all slots but these."""
        for table in (self.keys, self.values):
            for layer in table:
                table[layer] = table[layer].index_select(0, rows)
        self.lengths = self.lengths[rows]
        self.slots = len(rows)
        self._rows = torch.arange(self.slots, device=self.lengths.device)

    def resize(self, slots: int, places: int) -> None:
        """Change the number of slots or of their places; the first of both keep what stands in them."""
        self.slots, self.places = slots, -(-places // BUCKET) * BUCKET
        for table in (self.keys, self.values):
            for layer, old in table.items():
                new = old.new_zeros(slots, old.shape[1], self.places, old.shape[3])
                kept = old[:slots, :, : self.places]
                new[: kept.shape[0], :, : kept.shape[2]] = kept
                table[layer] = new
        self.lengths = F.pad(self.lengths[:slots], (0, max(0, slots - len(self.lengths))))
        self._rows = torch.arange(slots, device=self.lengths.device)

    def begin_step(self) -> None:
        """Work out once, for all layers, which places each row sees."""
        longest = int(self.lengths.max())
        if longest >= self.places:
            self.resize(self.slots, max(longest + 1, self.places * 3 // 2))
        self._end = min(self.places, -(-(longest + 1) // BUCKET) * BUCKET)
        place = torch.arange(self._end, device=self.lengths.device)
        self._distance = self.lengths[:, None] - place[None, :]  # (B, S)
        self._masks = {}

    def _seen(self, window: int | None) -> Tensor:
        if window not in self._masks:
            seen = self._distance >= 0
            seen = seen if window is None else seen & (self._distance < window)
            self._masks[window] = seen[:, None, None, :]
        return self._masks[window]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Store the new keys and values, then attend: q (B, H, 1, D) -> (B, H, 1, D)."""
        self.keys[layer][self._rows, :, self.lengths] = k[:, :, 0]
        self.values[layer][self._rows, :, self.lengths] = v[:, :, 0]
        keys, values = self.keys[layer][:, :, : self._end], self.values[layer][:, :, : self._end]
        b, h, _, d = q.shape
        kv = keys.shape[1]
        # Heads that share keys become queries of one key-value head: no repeated keys, one call.
        grouped = q.reshape(b, kv, h // kv, d)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._seen(window), scale=scale)
        return out.reshape(b, h, 1, values.shape[-1])


@dataclass(slots=True, eq=False)
class Row:
    """An answer being written; ``finish`` is set when it has ended, and ``tokens`` then ends as ``Sampled`` says.

    ``watch`` hears each token with the logits (V,) that it was drawn from.
    """

    prompt: int
    answer: int
    sampling: Sampling
    uniform: Tensor  # (max_tokens,)
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Finish | None = None
    watch: Callable[[int, Tensor], None] | None = None

    @classmethod
    def begin(cls, sampling: Sampling, seed: int, prompt: int, answer: int) -> Row:
        """A row with nothing written yet; its numbers come from (seed, prompt, answer) alone."""
        generator = torch.Generator().manual_seed(derive(seed, prompt, answer))
        return cls(prompt, answer, sampling, torch.rand(sampling.max_tokens, generator=generator))


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that has been run: its stretch of the packed row's keys and values, and the logits (V,) at its end."""

    kept: dict[int, tuple[Tensor, Tensor]]
    begin: int
    length: int
    logits: Tensor


class Table:
    """Rows that decode side by side under the adapter in use; they come and go between steps.

    A slot without a row runs along and is ignored, until ``keep_live`` takes it away. For use in inference mode.
    """

    def __init__(self, trunk: Trunk, stop: frozenset[int], *, slots: int = 0, places: int = 0) -> None:
        self.trunk, self.stop = trunk, stop
        self.cache = CacheView(slots, places, trunk.device)
        self.rows: list[Row | None] = [None] * slots

    @property
    def live(self) -> list[int]:
        """The slots that hold a row."""
        return [i for i, row in enumerate(self.rows) if row is not None]

    @property
    def free(self) -> list[int]:
        """The slots that hold none."""
        return [i for i, row in enumerate(self.rows) if row is None]

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Prefilled]:
        """Run prompts once each, as one packed row."""
        batch = pack([TokenGroup(prompt=tuple(prompt), answers=()) for prompt in prompts]).to(self.trunk.device)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        hidden = hidden_states(self.trunk.decoder, batch, kept)
        ends = torch.tensor([span.start + span.prompt - 1 for span in batch.spans], device=self.trunk.device)
        logits = self.trunk.head.logits(hidden[ends])
        return [Prefilled(kept, span.start, span.prompt, own) for span, own in zip(batch.spans, logits, strict=True)]

    def put(self, slot: int, row: Row, prefilled: Prefilled) -> None:
        """Let a row begin in a free slot, with its first token; the slot is free again if that ends it."""
        self.cache.put(slot, prefilled.kept, prefilled.begin, prefilled.length)
        self.rows[slot] = row
        self._choose([slot], prefilled.logits[None])

    def step(self) -> list[Row]:
        """Decode one token in every slot; return the rows that have ended, whose slots are free now."""
        last = torch.tensor([row.tokens[-1] if row is not None else 0 for row in self.rows], device=self.trunk.device)
        self.cache.begin_step()
        hidden = run_decoder(self.trunk.decoder, last[:, None], self.cache.lengths[:, None], self.cache)
        live = self.live
        logits = self.trunk.head.logits(hidden[live, 0])
        self.cache.lengths[live] += 1
        return self._choose(live, logits)

    def keep_live(self) -> None:
        """Take away the slots that hold no row."""
        live = self.live
        self.rows = [self.rows[i] for i in live]
        if live:
            self.cache.keep_rows(torch.tensor(live, device=self.trunk.device))
        else:
            self.cache = CacheView(0, 0, self.trunk.device)

    def make_free(self, slots: int) -> None:
        """See to it that so many slots are free."""
        more = slots - len(self.free)
        if more > 0:
            self.rows += [None] * more
            self.cache.resize(len(self.rows), self.cache.places)

    def drop(self, row: Row) -> None:
        """Free the slot of a row that nobody waits for any more."""
        self.rows = [None if other is row else other for other in self.rows]

    def _choose(self, slots: list[int], logits: Tensor) -> list[Row]:
        """Draw the next token of these slots' rows, logits (n, V); return the rows that this has ended."""
        rows = [row for slot in slots if (row := self.rows[slot]) is not None]
        uniform = torch.stack([row.uniform[len(row.tokens)] for row in rows]).to(logits.device)
        together: dict[tuple[float, float, int], list[int]] = {}
        for i, row in enumerate(rows):
            together.setdefault(row.sampling.distribution, []).append(i)
        for own in together.values():
            part = slice(None) if len(own) == len(rows) else own
            tokens, logps = choose(logits[part], uniform[part], rows[own[0]].sampling)
            for i, token, logp in zip(own, tokens.tolist(), logps.tolist(), strict=True):
                self._write(rows[i], token, logp, logits[i])
        for slot in slots:
            row = self.rows[slot]
            if row is not None and row.finish is not None:
                self.rows[slot] = None
        return [row for row in rows if row.finish is not None]

    def _write(self, row: Row, token: int, logp: float, logits: Tensor) -> None:
        row.tokens.append(token)
        row.logps.append(logp)
        if row.watch is not None:
            row.watch(token, logits)
        if token in self.stop:
            row.finish = "stop"
        elif len(row.tokens) == row.sampling.max_tokens:
            row.finish = "length"


class TorchSampler:
    """The built-in sampler: a trunk and one of its adapters."""

    def __init__(self, trunk: Trunk, adapter: str | None, *, stop: frozenset[int], slots: int = 64) -> None:
        self.trunk = trunk
        self.adapter = adapter
        self.stop = stop
        self.slots = slots

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Sampled]]:
        """Sample k answers for each prompt (token ids); the base's weights are untouched afterwards."""
        if any(not prompt for prompt in prompts):
            raise ModelError("cannot sample from an empty prompt")
        if not prompts or not k:
            return [[] for _ in prompts]
        with self.trunk.merged(self.adapter):
            run = _Run(self, prompts, k, sampling, seed, progress)
            return run.finish()


class _Run:
    """One call of ``sample``: a table, the queue of answers to write, and what is done."""

    def __init__(
        self, sampler: TorchSampler, prompts: Sequence[Sequence[int]], k: int, sampling: Sampling, seed: int,
        progress: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.sampling, self.prompts, self.k, self.seed, self.progress = sampling, prompts, k, seed, progress
        self.queue = deque(range(len(prompts)))
        self.ready: deque[tuple[Row, Prefilled]] = deque()
        slots, places = min(sampler.slots, len(prompts) * k), max(map(len, prompts)) + sampling.max_tokens
        self.table = Table(sampler.trunk, sampler.stop, slots=slots, places=places)
        self.done: list[list[Sampled | None]] = [[None] * k for _ in prompts]
        self.num_done = 0

    def finish(self) -> list[list[Sampled]]:
        """Run until every answer has ended."""
        while True:
            self._fill()
            live = len(self.table.live)
            if not live:
                break
            if live <= 0.75 * len(self.table.rows):
                self.table.keep_live()  # nothing waits, or _fill had filled them: stop paying for ended rows
            for row in self.table.step():
                self._record(row)
        return [[answer for answer in answers if answer is not None] for answers in self.done]

    def _fill(self) -> None:
        """Put waiting answers into free slots, once enough of them are free to make a prefill worth while."""
        free = self.table.free
        if len(free) * 4 < len(self.table.rows) or not (self.queue or self.ready):
            return
        while free and (self.queue or self.ready):
            if not self.ready:
                self._prefill(len(free))
            row, prefilled = self.ready.popleft()
            slot = free.pop(0)
            self.table.put(slot, row, prefilled)
            if row.finish is not None:  # ended with its first token
                self._record(row)
                free.append(slot)

    def _prefill(self, rows: int) -> None:
        """Run the next prompts, as many as there are slots for all their answers."""
        chosen = [self.queue.popleft() for _ in range(min(len(self.queue), max(1, rows // self.k)))]
        for p, prefilled in zip(chosen, self.table.prefill([self.prompts[p] for p in chosen]), strict=True):
            self.ready += ((Row.begin(self.sampling, self.seed, p, j), prefilled) for j in range(self.k))

    def _record(self, row: Row) -> None:
        """Keep an answer that has ended."""
        assert row.finish is not None
        answer = Sampled(tokens=tuple(row.tokens), logps=tuple(row.logps), finish=row.finish)
        self.done[row.prompt][row.answer] = answer
        self.num_done += 1
        if self.progress is not None:
            self.progress(self.num_done)
