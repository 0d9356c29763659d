"""Sampling: prompts in, answers out, with the log-probabilities of the distribution that was really sampled from.

Each prompt is prefilled once for all its answers. Rows of a fixed table of slots then decode side by side; a row that
ends frees its slot for the next answer. Answer j of prompt i draws its uniform numbers from (seed, i, j) alone, so what
is sampled does not depend on how answers were put into slots, beyond the rounding of matmuls of other shapes.

Letters: B slots, H heads, K key-value heads, D head size, V vocabulary, S longest sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """Keys and values of B slots; one new token a row per step."""

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

    def begin_step(self) -> None:
        """Work out once, for all layers, which places each row sees."""
        self._end = min(self.places, -(-(int(self.lengths.max()) + 1) // BUCKET) * BUCKET)
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


@dataclass(slots=True)
class _Row:
    """An answer being written."""

    prompt: int
    answer: int
    uniform: Tensor
    tokens: list[int]
    logps: list[float]


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
    """One call of ``sample``: slots, the queue of answers to write, and what is done."""

    def __init__(
        self, sampler: TorchSampler, prompts: Sequence[Sequence[int]], k: int, sampling: Sampling, seed: int,
        progress: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.trunk, self.stop, self.sampling = sampler.trunk, sampler.stop, sampling
        self.prompts, self.k, self.seed, self.progress = prompts, k, seed, progress
        self.queue = deque(range(len(prompts)))
        self.ready: deque[tuple[_Row, dict[int, tuple[Tensor, Tensor]], int, Tensor]] = deque()
        slots = min(sampler.slots, len(prompts) * k)
        self.cache = CacheView(slots, max(map(len, prompts)) + sampling.max_tokens, self.trunk.device)
        self.rows: list[_Row | None] = [None] * slots
        self.done: list[list[Sampled | None]] = [[None] * k for _ in prompts]
        self.num_done = 0

    def finish(self) -> list[list[Sampled]]:
        """Run until every answer has ended."""
        while True:
            self._fill()
            live = [i for i, row in enumerate(self.rows) if row is not None]
            if not live:
                break
            if len(live) <= 0.75 * len(
                self.rows
            ):  # nothing waits, or _fill had filled them: stop paying for ended rows
                self.cache.keep_rows(torch.tensor(live, device=self.trunk.device))
                self.rows = [self.rows[i] for i in live]
            self._step()
        return [[answer for answer in answers if answer is not None] for answers in self.done]

    def _fill(self) -> None:
        """Put waiting answers into free slots, once enough of them are free to make a prefill worth while."""
        free = [i for i, row in enumerate(self.rows) if row is None]
        if len(free) * 4 < len(self.rows) or not (self.queue or self.ready):
            return
        while free and (self.queue or self.ready):
            if not self.ready:
                self._prefill(len(free))
            row, kept, begin, logits = self.ready.popleft()
            slot = free.pop(0)
            self.cache.put(slot, kept, begin, len(self.prompts[row.prompt]))
            self.rows[slot] = row
            self._choose([slot], logits[None])
            if self.rows[slot] is None:  # ended with its first token
                free.append(slot)

    def _prefill(self, rows: int) -> None:
        """Run the next prompts once each, as one packed row."""
        chosen = [self.queue.popleft() for _ in range(min(len(self.queue), max(1, rows // self.k)))]
        batch = pack([TokenGroup(prompt=tuple(self.prompts[p]), answers=()) for p in chosen]).to(self.trunk.device)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        hidden = hidden_states(self.trunk.decoder, batch, kept)
        ends = torch.tensor([span.start + span.prompt - 1 for span in batch.spans], device=self.trunk.device)
        logits = self.trunk.head.logits(hidden[ends])
        for p, span, first in zip(chosen, batch.spans, logits, strict=True):
            for j in range(self.k):
                generator = torch.Generator().manual_seed(derive(self.seed, p, j))
                uniform = torch.rand(self.sampling.max_tokens, generator=generator)
                self.ready.append((_Row(p, j, uniform, [], []), kept, span.start, first))

    def _choose(self, slots: list[int], logits: Tensor) -> None:
        """Draw the next token of these slots, and end those that are through."""
        rows = [self.rows[i] for i in slots]
        uniform = torch.stack([row.uniform[len(row.tokens)] for row in rows if row is not None]).to(logits.device)
        tokens, logps = choose(logits, uniform, self.sampling)
        for slot, row, token, logp in zip(slots, rows, tokens.tolist(), logps.tolist(), strict=True):
            assert row is not None
            row.tokens.append(token)
            row.logps.append(logp)
            ended = token in self.stop
            if ended or len(row.tokens) == self.sampling.max_tokens:
                finish: Finish = "stop" if ended else "length"
                self.done[row.prompt][row.answer] = Sampled(
                    tokens=tuple(row.tokens), logps=tuple(row.logps), finish=finish
                )
                self.rows[slot] = None
                self.num_done += 1
                if self.progress is not None:
                    self.progress(self.num_done)

    def _step(self) -> None:
        """Decode one token in every slot (empty slots run along and are ignored)."""
        device = self.trunk.device
        last = torch.tensor([row.tokens[-1] if row is not None else 0 for row in self.rows], device=device)
        self.cache.begin_step()
        hidden = run_decoder(self.trunk.decoder, last[:, None], self.cache.lengths[:, None], self.cache)
        live = [i for i, row in enumerate(self.rows) if row is not None]
        logits = self.trunk.head.logits(hidden[live, 0])
        self.cache.lengths[live] += 1
        self._choose(live, logits)
