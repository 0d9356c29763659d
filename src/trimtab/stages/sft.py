"""Supervised fine-tuning: the next token of the answer, given the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.losses.lm import next_token
from trimtab.model.trunk import Trunk
from trimtab.model.tuning import Lora, Tune
from trimtab.records.read import read_groups
from trimtab.records.types import best_only
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens
from trimtab.train.loop import Pace, Update, batch_at, fit, num_steps
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Means, Run, invariant

FULL_LR = 5e-5


def sft(
    run: Run,
    *,
    data: DataRef,
    init: ModelRef = BASE,
    epochs: float = 2.0,
    batch: int = 16,
    lr: float = 2e-4,
    tune: Tune = "lora",
    lora: Lora = Lora(),  # noqa: B008 - frozen
    max_length: int = 1024,
    micro_tokens: int = 2048,
    checkpoint_activations: bool = False,
) -> Result:
    """Fine-tune on demonstrations: token-mean cross-entropy of the answers and their end (InstructGPT, step 1).

    ``batch`` conversations a step; every assistant turn of a conversation is trained. ``micro_tokens`` bounds memory
    and changes nothing else. Where answers were compared, only those that lost to none are learned from. ``tune``
    trains an adapter (``lora``) or all weights (``full``): the result is then a whole model, and a tenth of the rate is
    usual.
    """
    trunk, start = Trunk.open(init, dtype=run.dtype)
    tuned = trunk.trainable(tune, "sft", start, lora, seed=derive(run.seed, "lora"))
    if tune == "full" and lr > FULL_LR:
        run.note(f"lr {lr:g} is an adapter's rate; all weights are usually trained at {FULL_LR:g} or less")
    groups = [best_only(group) for group in read_groups(data.source).groups]
    _, tokens = encode(groups, trunk.chat, max_length=max_length, run=run, what="demonstrations")
    invariant(
        any(a and a[-1] == trunk.chat.end for item in tokens for a in item.answers),
        f"no demonstration in {data.source} ends with the end-of-turn token: the model would never learn to stop",
    )
    task = _Task(trunk, tokens, batch=batch, micro_tokens=micro_tokens, seed=run.seed)
    optimiser = Optimiser([ParameterGroup(name="sft", parameters=tuned.parameters, lr=lr, rates=tuned.rates)])
    trunk.checkpoint_activations(checkpoint_activations)
    with trunk.using(tuned.adapter):
        before = task.mean_loss()
        fit(run, task, optimiser, Pace(steps=num_steps(len(tokens), batch, epochs)), show=("train/loss",))
        trunk.checkpoint_activations(False)
        after = task.mean_loss()
    return Result(
        base=trunk.save(tuned.adapter, run.folder),
        metrics={
            "train/loss_before": before,
            "train/loss_after": after,
            "data/demonstrations": len(tokens),
            "data/target_tokens": sum(pack([item]).num_targets for item in tokens),
        },
    )


@dataclass(slots=True)
class _Micro:
    """A micro-batch and the number of target tokens in its whole update."""

    batch: TreeBatch
    total: int


class _Task:
    """Batches of demonstrations, one update a step."""

    def __init__(self, trunk: Trunk, tokens: list[TokenGroup], *, batch: int, micro_tokens: int, seed: int) -> None:
        self.trunk, self.tokens, self.batch, self.micro_tokens, self.seed = trunk, tokens, batch, micro_tokens, seed

    def updates(self, step: int, log: Means) -> Iterator[Update[_Micro]]:
        """The step's batch."""
        items = [self.tokens[i] for i in batch_at(step, len(self.tokens), self.batch, self.seed)]
        packed = [pack([items[i] for i in cut]) for cut in split_by_tokens(items, self.micro_tokens)]
        total = max(1, sum(p.num_targets for p in packed))  # a batch may hold no target at all
        log.add({"train/tokens": float(sum(p.ids.numel() for p in packed))})
        yield Update(micros=[_Micro(p, total) for p in packed], accumulate=self.accumulate)

    def accumulate(self, micro: _Micro) -> Mapping[str, Tensor]:
        """Token-mean over the whole update: divided by the step's count, not the micro-batch's."""
        batch = micro.batch.to(self.trunk.device)
        logps, _ = self.trunk.logps(batch)
        losses = next_token(logps)  # (N,)
        (losses.sum() / micro.total).backward()
        return {"train/loss": losses}

    @torch.no_grad()
    def mean_loss(self, limit: int = 24) -> float:
        """Token-mean loss over (at most ``limit`` of) the demonstrations, at a fixed stride."""
        items = self.tokens[:: -(-len(self.tokens) // limit)]
        means = Means()
        for cut in split_by_tokens(items, self.micro_tokens):
            logps, _ = self.trunk.logps(pack([items[i] for i in cut]).to(self.trunk.device))
            means.add({"loss": next_token(logps)})
        return means.result().get("loss", float("nan"))

    def state(self) -> dict[str, Any]:
        """Nothing: the data order comes from (seed, step)."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""
