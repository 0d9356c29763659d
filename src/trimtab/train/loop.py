"""The only loop. A stage hands it updates; it steps, logs, checkpoints and resumes.

A *step* is what the log has one line for: one batch of demonstrations, or one round of rollouts. A step holds one or
more *updates* of the weights (PPO: epochs x minibatches); an update is cut into *micro-batches* that fit in memory.
Losses are divided by counts over the whole update (``tensors.aggregate.Totals``), never by a micro-batch's own, so how
an update is cut does not change it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from trimtab.seeds import derive
from trimtab.train import checkpoint
from trimtab.train.optim import Optimiser, schedule
from trimtab.train.run import Means, Run, release_memory

M = TypeVar("M")
Metrics = Mapping[str, Tensor | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Generic[M]):
    """One change of the weights: its micro-batches and what to do with each.

    ``accumulate`` runs forward and backward on one micro-batch and returns per-item metrics. ``groups`` names the
    parameter groups to step (``None``: all that have a gradient).
    """

    micros: Sequence[M]
    accumulate: Callable[[M], Metrics]
    groups: tuple[str, ...] | None = None


class Task(Protocol):
    """What a stage trains: updates for a step, and small state that must survive a kill."""

    def updates(self, step: int, log: Means) -> Iterable[Update[Any]]:
        """Yield the step's updates. All randomness comes from (seed, step): nothing is remembered between steps."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able state besides weights and optimiser (controllers, running moments)."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Put ``state`` back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long and how fast. The schedule begins after ``before`` steps, which have the full rate."""

    steps: int
    before: int = 0
    warmup: float = 0.03
    floor: float = 0.1


def fit(
    run: Run, task: Task, optimiser: Optimiser, pace: Pace, *, show: Sequence[str] = ("train/loss",),
    ended: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Train for ``pace.steps`` steps, or until it has ``ended`` after one, from the latest checkpoint if there is one.

    Killed at any moment, the same call goes on and ends with the same bits.
    """
    folder = run.folder / "checkpoints"
    found = checkpoint.latest(folder)
    start = 0
    if found is not None:
        optimiser.load(found.tensors)
        task.load(found.state)
        start = found.step
        run.note(f"resumed after step {start} of {pace.steps}")
    run.rewind_log(start)
    run.reporter.begin(run.name, pace.steps, "step")
    run.reporter.advance(start, {})
    saved_at = time.monotonic()
    for step in range(start, pace.steps if not ended() else start):
        row = _step(task, optimiser, pace, step)
        release_memory()
        run.log({"step": step, **row})
        run.reporter.advance(step + 1, {name: row[name] for name in show if name in row})
        last = step + 1 == pace.steps or ended()
        if last or time.monotonic() - saved_at >= run.checkpoint_seconds:
            state = checkpoint.Checkpoint(step=step + 1, tensors=optimiser.state(), state=task.state())
            checkpoint.save(folder, state)
            saved_at = time.monotonic()
        if last:
            return


def _step(task: Task, optimiser: Optimiser, pace: Pace, step: int) -> dict[str, float]:
    """Do one step; return its line for the log."""
    began = time.monotonic()
    factor = 1.0
    if step >= pace.before:
        factor = schedule(step - pace.before, pace.steps - pace.before, warmup=pace.warmup, floor=pace.floor)
    log = Means()
    for update in task.updates(step, log):
        for micro in update.micros:
            log.add(update.accumulate(micro))
            optimiser.accumulate()
        norms = optimiser.step(factor, update.groups)
        log.add({f"train/grad_norm{'' if len(optimiser.groups) == 1 else '/' + k}": v for k, v in norms.items()})
    rates = {
        f"train/lr{'' if len(optimiser.groups) == 1 else '/' + k}": g.lr * factor for k, g in optimiser.groups.items()
    }
    return {**log.result(), **rates, "train/seconds": time.monotonic() - began}


def epoch_order(num_items: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the items that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(num_items, generator=generator).tolist()


def batch_at(step: int, num_items: int, batch: int, seed: int) -> list[int]:
    """The items of one step: consecutive stretches of an endless chain of shuffled epochs.

    Every item is seen once before any is seen twice; a batch may reach over the end of an epoch.
    """
    picked: list[int] = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, offset = divmod(place, num_items)
        if not picked or offset == 0:
            order = epoch_order(num_items, seed, epoch)
        picked.append(order[offset])
    return picked


def num_steps(num_items: int, batch: int, epochs: float) -> int:
    """Steps that cover ``epochs`` passes over the items: at least one."""
    return max(1, round(num_items * epochs / batch))
