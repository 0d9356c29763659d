"""A reward model from preferences: Bradley-Terry on a scalar head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.errors import DataError
from trimtab.losses.reward import bradley_terry, centering
from trimtab.model.trunk import Lora, ScalarHead, Trunk
from trimtab.records.read import read_groups
from trimtab.records.types import Group, Pair, pairs
from trimtab.rewards.reward_model import RewardModel
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stats.winrate import win_rate
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens
from trimtab.train.loop import Pace, Update, batch_at, fit, num_steps
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Means, Run, invariant


def reward(
    run: Run,
    *,
    data: DataRef,
    heldout: DataRef | None = None,
    init: ModelRef = BASE,
    epochs: float = 1.0,
    batch: int = 16,
    lr: float = 1e-4,
    head_lr: float = 1e-3,
    margin: float = 0.0,
    center: float = 0.01,
    lora: Lora = Lora(),  # noqa: B008 - frozen
    max_length: int = 1024,
    micro_tokens: int = 2048,
) -> Result:
    """Fit r(x, y) so that sigmoid(r_better - r_worse) is the chance of preferring (Bradley-Terry; InstructGPT eq. 1).

    ``batch`` prompts a step, all pairs of a prompt in one tree, every prompt weighing 1. ``margin`` times a pair's
    strength is asked for (Llama-2); ``center`` pulls scores towards 0. After training, scores are shifted and scaled to
    mean 0 and deviation 1 over a sample of the training answers (Ziegler et al., 2019).
    """
    trunk, adapter = Trunk.open(init, dtype=run.dtype)
    trunk.derive_adapter("reward", adapter, lora, seed=derive(run.seed, "lora"))
    head = trunk.scalar_head()
    groups, tokens = _load(data, trunk, max_length, run)
    task = _Task(
        trunk, head, groups, tokens, batch=batch, micro_tokens=micro_tokens, margin=margin, center=center, seed=run.seed
    )
    optimiser = Optimiser(
        [
            ParameterGroup(name="adapter", parameters=trunk.train_adapter("reward"), lr=lr),
            ParameterGroup(name="head", parameters=list(head.parameters()), lr=head_lr),
        ]
    )
    with trunk.using("reward"):
        _check_start(task)
        fit(
            run,
            task,
            optimiser,
            Pace(steps=num_steps(len(tokens), batch, epochs)),
            show=("train/loss", "train/accuracy"),
        )
    model = RewardModel(trunk, "reward", head)
    metrics = _standardise(model, tokens)
    if heldout is not None:
        metrics |= _heldout(model, *_load(heldout, trunk, max_length, run))
    trunk.save_adapter("reward", run.folder)
    head.save(run.folder)
    return Result(base=init.base, metrics={"data/pairs": float(sum(len(pairs(g)) for g in groups)), **metrics})


def _load(data: DataRef, trunk: Trunk, max_length: int, run: Run) -> tuple[list[Group], list[TokenGroup]]:
    """Groups that hold a strict preference; others (ties, unjudged) are counted and said."""
    found = read_groups(data.source).groups
    judged = [group for group in found if pairs(group)]
    if not judged:
        raise DataError(f"{data.source}: no preference pairs in it (nothing says which of two answers is better)")
    if len(judged) < len(found):
        run.note(
            f"{data.source}: {len(found) - len(judged)} of {len(found)} groups hold no strict preference, left out"
        )
    return encode(judged, trunk.chat, max_length=max_length, run=run, what="preferences")


@dataclass(slots=True)
class _Micro:
    """A micro-batch, its pairs as answer indices, and the number of prompts in the whole update."""

    batch: TreeBatch
    better: Tensor  # (P,)
    worse: Tensor  # (P,)
    strength: Tensor  # (P,)
    probability: Tensor  # (P,)
    weight: Tensor  # (P,) 1 / pairs of the prompt
    prompts: int

    def to(self, device: torch.device) -> _Micro:
        """The same on a device."""
        moved = {
            name: getattr(self, name).to(device) for name in ("better", "worse", "strength", "probability", "weight")
        }
        return replace(self, batch=self.batch.to(device), **moved)


class _Task:
    """Batches of judged Groups, one update a step."""

    def __init__(
        self, trunk: Trunk, head: ScalarHead, groups: Sequence[Group], tokens: Sequence[TokenGroup], *,
        batch: int, micro_tokens: int, margin: float, center: float, seed: int,
    ) -> None:  # fmt: skip
        self.trunk, self.head, self.groups, self.tokens = trunk, head, groups, tokens
        self.batch, self.micro_tokens, self.margin, self.center, self.seed = batch, micro_tokens, margin, center, seed

    def updates(self, step: int, log: Means) -> Iterator[Update[_Micro]]:
        """The step's batch."""
        chosen = batch_at(step, len(self.tokens), self.batch, self.seed)
        items = [self.tokens[i] for i in chosen]
        cuts = split_by_tokens(items, self.micro_tokens)
        micros = [self.micro([chosen[i] for i in cut], len(chosen)) for cut in cuts]
        yield Update(micros=micros, accumulate=self.accumulate)

    def micro(self, indices: Sequence[int], prompts: int) -> _Micro:
        """Pack some Groups, with their pairs as indices of the packed answers."""
        batch = pack([self.tokens[i] for i in indices])
        rows: list[tuple[int, int, Pair, float]] = []
        first = 0
        for i in indices:
            verdicts = pairs(self.groups[i])
            rows += [(first + p.better, first + p.worse, p, 1 / len(verdicts)) for p in verdicts]
            first += len(self.tokens[i].answers)
        return _Micro(
            batch=batch,
            better=torch.tensor([r[0] for r in rows]),
            worse=torch.tensor([r[1] for r in rows]),
            strength=torch.tensor([r[2].strength if r[2].strength is not None else 1.0 for r in rows]),
            probability=torch.tensor([r[2].probability if r[2].probability is not None else 1.0 for r in rows]),
            weight=torch.tensor([r[3] for r in rows]),
            prompts=prompts,
        )

    def scores(self, micro: _Micro) -> Tensor:
        """Scores (A,) of a micro-batch's answers."""
        scores: Tensor = self.head(self.trunk.hidden(micro.batch)[micro.batch.last])
        return scores

    def accumulate(self, micro: _Micro) -> Mapping[str, Tensor]:
        """Pair losses, averaged within a prompt, then over the update's prompts."""
        micro = micro.to(self.trunk.device)
        scores = self.scores(micro)
        better, worse = scores[micro.better], scores[micro.worse]  # (P,)
        losses = bradley_terry(better, worse, margin=self.margin * micro.strength, probability=micro.probability)
        total = losses + self.center * centering(better, worse)
        ((total * micro.weight).sum() / micro.prompts).backward()
        return {"train/loss": losses, "train/accuracy": (better > worse).float(), "train/margin": better - worse}

    def state(self) -> dict[str, Any]:
        """Nothing: the data order comes from (seed, step)."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""


@torch.no_grad()
def _check_start(task: _Task) -> None:
    """With a zero head and no margin, every pair's first loss is ln 2."""
    micro = task.micro([0], 1).to(task.trunk.device)
    scores = task.scores(micro)
    losses = bradley_terry(scores[micro.better], scores[micro.worse])
    off = float((losses - math.log(2)).abs().max())
    invariant(off < 1e-6, f"step 0: the reward loss is off ln 2 by {off:.3g}: the head does not start at zero")


@torch.no_grad()
def _standardise(model: RewardModel, tokens: Sequence[TokenGroup], limit: int = 64) -> dict[str, float]:
    """Fold gain and bias into the head: r' = (r - mean) / std over training answers at a fixed stride."""
    sample = torch.tensor([s for row in model.score_tokens(tokens[:: max(1, len(tokens) // limit)]) for s in row])
    mean, std = float(sample.mean()), float(sample.std(correction=0))
    invariant(
        std > 0 and math.isfinite(std), "the reward model gives every answer the same score: it has learned nothing"
    )
    model.head.weight.div_(std)
    model.head.bias.copy_((model.head.bias - mean) / std)
    return {"score/mean_before": mean, "score/std_before": std}


def _heldout(model: RewardModel, groups: Sequence[Group], tokens: Sequence[TokenGroup]) -> dict[str, float]:
    """Accuracy on held-out pairs, beside "the longer wins" and "the one that finishes wins" (ties count one half).

    Pairs of one prompt are averaged first: the interval is over prompts.
    """
    right: list[float] = []
    prompts: list[tuple[int, ...]] = []
    longer: list[float] = []
    finished: list[float] = []
    kinds: dict[str, list[float]] = {}
    for group, item, scores in zip(groups, tokens, model.score_tokens(tokens), strict=True):
        for pair in pairs(group):
            b, w = pair.better, pair.worse
            hit = _wins(scores[b], scores[w])
            right.append(hit)
            prompts.append(item.prompt)
            longer.append(_wins(len(item.answers[b]), len(item.answers[w])))
            finished.append(_wins(group.answers[b].finish != "length", group.answers[w].finish != "length"))
            kinds.setdefault(str(group.meta.get("flaw", "all")), []).append(hit)
    share = win_rate(right, prompts=prompts)
    return {
        "heldout/accuracy": share.mean,
        "heldout/accuracy_lo": share.lo,
        "heldout/accuracy_hi": share.hi,
        "heldout/prompts": float(share.n),
        "heldout/longer_wins": sum(longer) / len(longer),
        "heldout/finished_wins": sum(finished) / len(finished),
        "heldout/n": float(len(right)),
        **{f"heldout/accuracy/{k}": sum(v) / len(v) for k, v in sorted(kinds.items()) if k != "all"},
    }


def _wins(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0
