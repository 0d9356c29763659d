"""A reward model from what people said: preferences, rankings, or numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.data.judged import Bad, Check, Judged, read_judged, with_labels, with_orders, with_pairs
from trimtab.errors import ConfigError, DataError, did_you_mean
from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.model.tuning import Lora, Tune
from trimtab.records.types import Group, Score
from trimtab.registry import REWARD_LOSSES, Entry
from trimtab.rewards.reward_model import AttributeHeads, RewardModel
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stages._reward_finish import finish_attributes, finish_score
from trimtab.stages._reward_labels import LabelScale
from trimtab.stages._reward_report import compare_labels, compare_verdicts, report_labels, report_pairs
from trimtab.stages._reward_task import Kind, Labels, Objective, Orders, Pairs, Task, kind_of
from trimtab.tensors.tree import TokenGroup
from trimtab.train.loop import Pace, fit, num_steps
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Run

FULL_LR = 1e-5
WANTED: Mapping[Kind, str] = {"pairs": "strict preference", "orders": "order of answers", "labels": "label"}


def reward(
    run: Run,
    *,
    data: DataRef,
    heldout: DataRef | None = None,
    init: ModelRef = BASE,
    loss: Annotated[str, REWARD_LOSSES] = "bradley_terry",
    attributes: tuple[str, ...] = (),
    weights: Mapping[str, float] | None = None,
    per_rater: bool = False,
    epochs: float = 1.0,
    batch: int = 16,
    lr: float = 1e-4,
    head_lr: float = 1e-3,
    margin: float = 0.0,
    center: float = 0.01,
    bad: Bad = "skip",
    tune: Tune = "lora",
    lora: Lora = Lora(),  # noqa: B008 - frozen
    max_length: int = 1024,
    micro_tokens: int = 2048,
    **options: Any,
) -> Result:
    """Fit r(x, y) to preferences (Bradley-Terry; InstructGPT eq. 1), to rankings, or to numbers that raters gave.

    ``loss`` is a file of ``losses/reward``: bradley_terry (pairs, also those that rankings imply), plackett_luce
    (rankings, pairs, scores that imply an order), mse or bce (scores and thumbs). ``batch`` prompts a step, all answers
    to a prompt in one tree, every prompt weighing 1. ``margin`` times a pair's strength is asked for (Llama-2);
    ``center`` pulls preference scores towards 0. ``bad``: leave out rows that cannot be used and count them, or stop at
    the first.

    Numbers (mse, bce) have a head for each of ``attributes`` (none named: all that are found). Labels of mse are
    standardised by the training labels, with ``per_rater`` by those of each rater; missing ones teach nothing. The
    score, which PPO and others read, is the mean of the heads' outputs, each standardised on training answers;
    ``weights`` makes it a weighted sum (attributes without a weight: 0).

    After training, scores are shifted and scaled to mean 0 and deviation 1 over a sample of the training answers
    (Ziegler et al., 2019). What they were before is kept in the card beside the head. ``tune`` trains an adapter
    (``lora``) or all weights (``full``): the result is then a whole model, and a tenth of the rate is usual.
    """
    entry = REWARD_LOSSES[loss]
    if options:  # of a loss of the user's own
        entry = replace(entry, function=partial(entry.function, **options))
    _check_idle(run, entry, locals())
    source = _Source(kind_of(entry), attributes, loss, bad, max_length)
    found = source.read(run, data)
    tests = None if heldout is None else source.read(run, heldout)
    trunk, adapter = Trunk.open(init, dtype=run.dtype)
    tuned = trunk.trainable(tune, "reward", adapter, lora, seed=derive(run.seed, "lora"))
    if tune == "full" and lr > FULL_LR:
        run.note(f"lr {lr:g} is an adapter's rate; all weights are usually trained at {FULL_LR:g} or less")
    groups, tokens = source.encode(run, trunk, found)
    judged = None if tests is None else source.encode(run, trunk, tests)
    scale: LabelScale | None = None
    head: ScalarHead | AttributeHeads = trunk.scalar_head()
    if source.kind == "labels":
        scale = _scale(run, groups, attributes, weights, per_rater=per_rater, standardised=loss != "bce")
        head = AttributeHeads(trunk.hidden_size, len(scale.attributes)).to(trunk.device)
        groups, tokens = _labelled(scale, groups, tokens, data)
        judged = None if judged is None or heldout is None else _labelled(scale, *judged, heldout)
    objective = _objective(entry, scale, margin=margin, center=center)
    task = Task(trunk, head, objective, groups, tokens, batch=batch, micro_tokens=micro_tokens, seed=run.seed)
    optimiser = Optimiser(
        [
            ParameterGroup(name="adapter", parameters=tuned.parameters, lr=lr, rates=tuned.rates),
            ParameterGroup(name="head", parameters=list(head.parameters()), lr=head_lr),
        ]
    )
    with trunk.using(tuned.adapter):
        task.check_start()
        pace = Pace(steps=num_steps(len(tokens), batch, epochs))
        fit(run, task, optimiser, pace, show=("train/loss", "train/accuracy"))
    if isinstance(head, ScalarHead):
        model = finish_score(trunk, tuned.adapter, head, loss, tokens)
    else:
        assert scale is not None
        model = finish_attributes(trunk, tuned.adapter, head, loss, tokens, scale=scale, weights=weights)
    metrics = {
        f"data/{source.kind}": float(sum(map(_size, groups))),
        "data/left_out": float(found.rows - len(groups)),
        "score/mean_before": model.card.mean,
        "score/std_before": model.card.std,
    }
    if judged is not None:
        metrics |= _measure(model, *judged, scale)
    return Result(base=model.save(run.folder), metrics=metrics)


def _check_idle(run: Run, entry: Entry, given: Mapping[str, Any]) -> None:
    """Refuse a setting that would change nothing: whoever wrote it meant something."""
    kind = kind_of(entry)
    learns = f"loss {entry.name!r} learns from {kind}"
    idle = {
        "margin": (kind != "pairs", learns),
        "center": (kind == "labels", f"{learns}, which fix where 0 is"),
        "attributes": (kind != "labels", learns),
        "weights": (kind != "labels", learns),
        "per_rater": (
            kind != "labels" or entry.name == "bce",
            f"loss {entry.name!r} takes chances as they are" if kind == "labels" else learns,
        ),
    }
    defaults = {name: p.default for name, p in inspect.signature(reward).parameters.items()}
    for option, (unused, reason) in idle.items():
        if unused and given[option] != defaults[option]:
            raise ConfigError(f"stages.{run.name}.{option} would change nothing: {reason}")


@dataclass(frozen=True, slots=True)
class _Source:
    """How the data of a loss are read."""

    kind: Kind
    attributes: tuple[str, ...]
    loss: str
    bad: Bad
    max_length: int

    def read(self, run: Run, data: DataRef) -> Judged:
        """Groups with what can be learned from; what is wrong with others is counted and said."""
        checks: dict[Kind, Check] = {
            "pairs": with_pairs,
            "orders": with_orders,
            "labels": with_labels(self.attributes, chances=self.loss == "bce"),
        }
        what = WANTED[self.kind] + (f" of {', '.join(self.attributes)}" if self.attributes else "")
        return read_judged(data.source, checks[self.kind], run=run, bad=self.bad, what=what)

    def encode(self, run: Run, trunk: Trunk, found: Judged) -> tuple[list[Group], list[TokenGroup]]:
        """The same as tokens, without those that are too long."""
        return encode(
            found.groups, trunk.chat, max_length=self.max_length, run=run, what="judged prompts", bad=self.bad
        )


def _size(group: Group) -> int:
    """Items of a cleaned Group: preferences, orders, or single labels."""
    return sum(len(verdict.values) if isinstance(verdict, Score) else 1 for verdict in group.verdicts)


def _scale(
    run: Run, groups: Sequence[Group], attributes: Sequence[str], weights: Mapping[str, float] | None, *,
    per_rater: bool, standardised: bool,
) -> LabelScale:  # fmt: skip
    """The labels' scale; weights that name no attribute, or cannot change the score, are refused."""
    where = f"stages.{run.name}"
    try:
        scale = LabelScale.fit(groups, attributes, per_rater=per_rater, standardised=standardised)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None
    for sentence in scale.describe(groups):
        run.note(sentence)
    for name in weights or ():
        if name not in scale.attributes:
            raise ConfigError(f"{where}.weights: no attribute {name!r}{did_you_mean(name, scale.attributes)}")
    if weights is not None and not any(weights.values()):
        raise ConfigError(f"{where}.weights: every weight is 0, so every answer would have the same score")
    if weights is not None and len(scale.attributes) == 1 and min(weights.values()) > 0:
        raise ConfigError(f"{where}.weights would change nothing: there is one attribute")
    return scale


def _labelled(
    scale: LabelScale, groups: Sequence[Group], tokens: Sequence[TokenGroup], data: DataRef
) -> tuple[list[Group], list[TokenGroup]]:
    """Groups with a label of some attribute that is learned."""
    kept = [i for i, group in enumerate(groups) if scale.table(group)]
    if not kept:
        raise DataError(f"{data.source}: no label in it of {', '.join(scale.attributes)}")
    return [groups[i] for i in kept], [tokens[i] for i in kept]


def _objective(entry: Entry, scale: LabelScale | None, *, margin: float, center: float) -> Objective:
    if scale is not None:
        return Labels(loss=entry, scale=scale)
    if kind_of(entry) == "pairs":
        return Pairs(loss=entry, margin=margin, center=center)
    return Orders(loss=entry, center=center)


def _measure(
    model: RewardModel, groups: Sequence[Group], tokens: Sequence[TokenGroup], scale: LabelScale | None
) -> dict[str, float]:
    """What a model gets right on held-out verdicts (``_reward_report``)."""
    tables = model.read_tokens(tokens)
    scores = [table[:, 0].tolist() for table in tables]
    if scale is None:
        return report_pairs(compare_verdicts(groups, tokens, scores), std=model.card.std)
    found = compare_labels(groups, tokens, scores, scale, model.card)
    metrics = report_pairs(found, std=None) if found else {}
    return metrics | report_labels(groups, tokens, [table[:, 1:] for table in tables], scale, model.card)
