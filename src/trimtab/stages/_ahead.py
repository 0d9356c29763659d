"""Asynchronous rollouts: the next rounds are sampled while this one is learned from.

With ``staleness`` n, round s is sampled by the weights of round s - n (those that had learned from the rounds before
that one): one-step off-policy for n = 1 (Noukhovitch et al. 2024, arXiv:2410.18252). Which weights write which round is
a rule, not a race, so a run's bits do not depend on how fast either side was. The trainer's own pass at the start of a
round gives the proximal log-probabilities, and ``clip.importance`` the truncated weight between them and the sampler's:
the decoupled objective of AReaL (arXiv:2505.24298, section 5.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.model.roles import Role
from trimtab.model.sampler import Sampled, Sampler, TorchSampler
from trimtab.stages._rollout import Drawn, Roller


class _ClosedError(Exception):
    """The run ended before the answers did."""


class Ahead:
    """Rounds in the making: a thread that samples with its own copy of the policy's adapter.

    The base's weights are shared; the copy of the adapter is taken when a round is asked for. While it samples, the
    weights with the adapter in them are there beside what training needs: a second copy of the adapted layers.
    """

    def __init__(
        self, roller: Roller, actor: Role, chosen: Callable[[int], list[int]], *, steps: int, staleness: int,
        over: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        assert actor.adapter is not None
        self.roller, self.actor, self.chosen, self.steps, self.staleness = roller, actor, chosen, steps, staleness
        self.over = over
        self.adapter, self.twin = actor.adapter, actor.trunk.twin()
        self.pending: dict[int, Future[Drawn]] = {}
        self.closed = False
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="sampler", initializer=partial(torch.set_num_threads, self._half)
        )

    @property
    def _half(self) -> int:
        """Threads for each side, where both compute on the same CPU."""
        return max(1, self.threads // 2)

    def __enter__(self) -> Ahead:
        if self.twin.device.type == "cpu":
            torch.set_num_threads(max(1, self.threads - self._half))
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        self.pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self.threads)

    def take(self, step: int) -> Drawn:
        """A round's answers; rounds up to ``staleness`` later are asked for now, of the weights as they are."""
        wanted = [s for s in range(step, min(step + self.staleness + 1, self.steps)) if s not in self.pending]
        if wanted:
            own = self.actor.trunk.named_adapter_parameters(self.adapter)
            weights = {name: parameter.detach().clone() for name, parameter in own.items()}
            for later in wanted:
                self.pending[later] = self.pool.submit(self._draw, later, step, weights)
        return self.pending.pop(step).result()

    def _draw(self, step: int, version: int, weights: Mapping[str, Tensor]) -> Drawn:
        """In the thread: one round, by the given weights."""
        with torch.no_grad():
            for name, parameter in self.twin.named_adapter_parameters(self.adapter).items():
                parameter.copy_(weights[name])
        sampler: Sampler = _Interruptible(self, TorchSampler(self.twin, self.adapter, stop=self.twin.chat.stop))
        drawn = self.roller.draw(sampler, step, self.chosen(step))
        return Drawn(answers=drawn.answers, greedy=drawn.greedy, version=version)

    def state(self) -> dict[str, Any]:
        """What was sampled and not learned from yet; waits for what is being sampled, unless the run is over."""
        if self.over():
            return {}
        return {str(step): _as_json(future.result()) for step, future in self.pending.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        for step, drawn in state.items():
            future: Future[Drawn] = Future()
            future.set_result(_from_json(drawn))
            self.pending[int(step)] = future


class _Interruptible:
    """A sampler that stops when the run does."""

    def __init__(self, ahead: Ahead, sampler: TorchSampler) -> None:
        self.ahead, self.sampler = ahead, sampler

    def sample(self, *args: Any, **settings: Any) -> list[list[Sampled]]:
        return self.sampler.sample(*args, **settings, progress=self._check)

    def _check(self, _: int) -> None:
        if self.ahead.closed:
            raise _ClosedError


def _as_json(drawn: Drawn) -> dict[str, Any]:
    def rows(answers: list[list[Sampled]] | None) -> list[list[list[Any]]] | None:
        if answers is None:
            return None
        return [[[list(a.tokens), list(a.logps), a.finish] for a in own] for own in answers]

    return {"answers": rows(drawn.answers), "greedy": rows(drawn.greedy), "version": drawn.version}


def _from_json(state: Mapping[str, Any]) -> Drawn:
    def rows(answers: list[list[list[Any]]] | None) -> list[list[Sampled]] | None:
        if answers is None:
            return None
        return [[Sampled(tokens=tuple(t), logps=tuple(p), finish=f) for t, p, f in own] for own in answers]

    answers = rows(state["answers"])
    assert answers is not None
    return Drawn(answers=answers, greedy=rows(state["greedy"]), version=int(state["version"]))
