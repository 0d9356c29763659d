"""Preference learning without a reward model: DPO and its relatives, from pairs, thumbs or rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.data.judged import Bad, read_judged
from trimtab.errors import ConfigError, DataError
from trimtab.model.roles import Role
from trimtab.model.trunk import Trunk
from trimtab.model.tuning import Lora, Tune
from trimtab.registry import PREFERENCE_LOSSES
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stages._items import KINDS, Item, make_item, with_reference
from trimtab.stages._preference import Objective, Preference
from trimtab.stages._reward_report import Compared, report_accuracy
from trimtab.stages._texts import mixed_in
from trimtab.train.loop import Pace, fit, num_steps
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.reference import answer_logps
from trimtab.train.run import Run, invariant

AtLeastOne = Annotated[int, Field(ge=1)]


def preference(
    run: Run,
    *,
    data: DataRef,
    heldout: DataRef | None = None,
    init: ModelRef = BASE,
    method: Annotated[str, PREFERENCE_LOSSES] = "dpo",
    epochs: float = 1.0,
    steps: AtLeastOne | None = None,
    batch: AtLeastOne = 16,
    lr: float = 5e-5,
    sft: DataRef | None = None,
    sft_weight: float = 1.0,
    sft_batch: AtLeastOne = 8,
    bad: Bad = "skip",
    tune: Tune = "lora",
    lora: Lora = Lora(),  # noqa: B008 - frozen
    max_length: int = 1024,
    micro_tokens: int = 2048,
    **options: Any,
) -> Result:
    """Learn from preferences directly (DPO: Rafailov et al., 2023, and its relatives).

    ``method`` is a file of ``losses/preference``, and its options stand beside the stage's own. ``batch`` prompts a
    step, each counting the same; where thumbs are learned from, each answer. The reference is the model that training
    starts from; what it thinks of the data is computed once. ``sft`` mixes next-token learning on other texts into
    every update, ``sft_batch`` of them, weighted by ``sft_weight``. ``steps`` is for who counts steps, not ``epochs``.
    ``bad``: leave out rows that cannot be used and count them, or stop at the first. ``tune: full`` trains all weights.
    """
    if sft is None and (sft_weight, sft_batch) != (1.0, 8):
        raise ConfigError(f"stages.{run.name}: sft_weight and sft_batch would change nothing: there is no sft")
    if steps is not None and epochs != 1.0:
        raise ConfigError(f"stages.{run.name}.epochs would change nothing: there are {steps} steps")
    objective = Objective(PREFERENCE_LOSSES[method], options)
    trunk, start = Trunk.open(init, dtype=run.dtype)
    loader = _Loader(run, objective, trunk, start, bad, max_length, micro_tokens)
    items, tests = loader.read(data, train=True), [] if heldout is None else loader.read(heldout, train=False)
    # A whole model that is trained is no reference any more; what the data needs of one has been read by now.
    reference = (
        Role(*Trunk.open(init, dtype=run.dtype)) if tune == "full" and objective.needs_kl else Role(trunk, start)
    )
    tuned = trunk.trainable(tune, "preference", start, lora, seed=derive(run.seed, "lora"))
    policy = Role(trunk, tuned.adapter)
    texts = mixed_in(
        run, trunk, tuned.adapter, None if sft is None else sft.source, name="sft", weight=sft_weight, batch=sft_batch,
        max_length=max_length, micro_tokens=micro_tokens, bad=bad,
    )  # fmt: skip
    task = Preference(
        policy, reference, objective, items, batch=batch, micro_tokens=micro_tokens, seed=run.seed, texts=texts
    )
    _check_start(task)
    before = _probe(policy, items, micro_tokens)
    learner = ParameterGroup(name="preference", parameters=tuned.parameters, lr=lr, rates=tuned.rates)
    pace = Pace(steps=steps or num_steps(len(items), batch, epochs))
    fit(run, task, Optimiser([learner]), pace, show=("train/loss", "train/accuracy"))
    after = _probe(policy, items, micro_tokens)
    _warn(run, before, after)
    accuracy = _heldout(task, tests)
    if heldout is not None and not accuracy:
        run.note(f"{heldout.source}: no prompt has a better and a worse answer, so there is no accuracy to tell")
    return Result(
        base=trunk.save(tuned.adapter, run.folder),
        metrics={
            "data/prompts": float(len(items)),
            "data/items": float(sum(item.size for item in items)),
            **{f"{name}_before": value for name, value in before.items()},
            **{f"{name}_after": value for name, value in after.items()},
            **accuracy,
        },
    )


@dataclass(frozen=True, slots=True)
class _Loader:
    """What one method can learn from data, with what the reference thinks of it."""

    run: Run
    objective: Objective
    trunk: Trunk
    start: str | None
    bad: Bad
    max_length: int
    micro_tokens: int

    def read(self, data: DataRef, *, train: bool) -> list[Item]:
        """Read a data set, to ``train`` on or to measure with; what says nothing to the method is counted and said."""
        check, what = KINDS[self.objective.kind]
        judged = read_judged(data.source, check, run=self.run, bad=self.bad, what=what)
        groups, tokens = encode(
            judged.groups, self.trunk.chat, max_length=self.max_length, run=self.run, what="preferences", bad=self.bad
        )
        made = [make_item(self.objective.kind, group, item) for group, item in zip(groups, tokens, strict=True)]
        items = [item for item in made if item is not None]
        if self.bad == "stop" and None in made:  # nothing has been left out so far
            raise DataError(
                f"{judged.places[made.index(None)]}: its verdicts cancel out (bad: skip goes on without it)"
            )
        if not items:
            raise DataError(f"{data.source}: no {what} in it that could be learned from: all verdicts cancel out")
        if len(items) < len(made):
            self.run.note(f"{data.source}: in {len(made) - len(items)} of {len(made)} groups the verdicts cancel out")
        if self.objective.needs_reference:
            strangers = self.max_length if train and "baseline" in self.objective.columns else None
            items = with_reference(
                items, self.run, self.trunk, self.start, micro_tokens=self.micro_tokens, strangers=strangers
            )
        return items


@torch.no_grad()
def _check_start(task: Preference) -> None:
    """The policy starts as the reference, so log-ratios are 0 (and DPO's first loss is ln 2)."""
    if not task.objective.needs_reference:
        return
    micro = task.micros(task.items[:1], torch.zeros(()))[0].to(task.policy.trunk.device)
    numbers = task.numbers(micro)
    off = float(((numbers["logps"] - numbers["ref_logps"]) / numbers["tokens"]).abs().max())
    half = task.policy.trunk.dtype in (torch.bfloat16, torch.float16)
    invariant(
        off < (0.1 if half else 1e-3),
        f"step 0: policy and reference differ by {off:.3g} nats a token; they must be the same model",
    )


def _sides(item: Item) -> tuple[list[int], list[int]]:
    """The answers that were put before another, and those behind, as often as they were; of thumbs, both kinds."""
    if item.liked:  # a single answer is in no order
        return [i for i, up in item.liked if up], [i for i, up in item.liked if not up]
    return [better for better, _ in item.ordered], [worse for _, worse in item.ordered]


def _probe(policy: Role, items: Sequence[Item], micro_tokens: int, limit: int = 24) -> dict[str, float]:
    """Mean log-probability a token of chosen and of rejected answers, at a fixed stride over the data."""
    sample = items[:: -(-len(items) // limit)]
    found = answer_logps(policy.trunk, policy.adapter, [item.tokens for item in sample], micro_tokens=micro_tokens)
    sums = {"chosen": [0.0, 0], "rejected": [0.0, 0]}
    for item, logps in zip(sample, found, strict=True):
        for name, side in zip(sums, _sides(item), strict=True):
            sums[name][0] += sum(float(logps[i]) for i in side)
            sums[name][1] += sum(item.targets[i] for i in side)
    return {f"{name}/logp": total / tokens for name, (total, tokens) in sums.items() if tokens}


def _warn(run: Run, before: Mapping[str, float], after: Mapping[str, float], limit: float = 0.05) -> None:
    """Say so when the chosen answers have become less likely: what is preferred is then something else."""
    if "chosen/logp" not in before:
        return
    fell = before["chosen/logp"] - after["chosen/logp"]
    if fell > limit:
        run.note(
            f"the chosen answers became less likely, from {before['chosen/logp']:.2f} to {after['chosen/logp']:.2f} "
            f"nats a token: the model moves to a third kind of answer; method=dpop holds them, or sft with sft_weight"
        )


def _heldout(task: Preference, items: Sequence[Item]) -> dict[str, float]:
    """How often the implicit reward puts the better of two held-out answers first, beside "the longer wins"."""
    if not items:
        return {}
    found = answer_logps(
        task.policy.trunk, task.policy.adapter, [item.tokens for item in items], micro_tokens=task.micro_tokens
    )
    compared: list[Compared] = []
    for item, logps in zip(items, found, strict=True):
        reference = torch.zeros_like(logps) if item.ref_logps is None else item.ref_logps
        tokens = torch.tensor(item.targets).clamp_min(1)
        rewards = task.objective.rewards({"logps": logps, "ref_logps": reference, "tokens": tokens}).tolist()
        lengths = [len(answer) for answer in item.tokens.answers]
        compared += [
            Compared(prompt=item.tokens.prompt, scores=(rewards[i], rewards[j]), lengths=(lengths[i], lengths[j]))
            for i, j in item.ordered
        ]
    return report_accuracy(compared) if compared else {}
