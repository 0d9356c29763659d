"""Health readings: what a stage's curves say about it, in plain words. Pure: rows in, readings out.

Start and end of a curve are the means of its first and last fifth (`stats.describe.trend`). A threshold is a reason to
look, never a proof; each one below says where it comes from. A metric that a stage does not log gives no reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan

import numpy as np

from trimtab.report.health_policy import kl_budget, policy_health
from trimtab.report.read import Interval, Row, StageRecord
from trimtab.report.reading import Level, Reading, column, curve, percent, rising, short
from trimtab.stats.describe import Trend
from trimtab.stats.winrate import wilson

GRADIENT_SPIKE = 10.0
"""Largest gradient norm over the median: clipping hides spikes of this size, but the loss has usually jumped with
them."""

MEMORISED = 0.95
"""Token accuracy in training that plain reading of new text does not reach: the answers are known by heart."""

HELDOUT_RISE_WATCH, HELDOUT_RISE_BAD = 1.05, 1.2
"""Held-out loss at the end over its lowest value: past its best by more than noise; and by a fifth."""

OVERFIT_GAP = 0.15
"""Training minus held-out pair accuracy. Reward models are trained for one epoch because more overfits (InstructGPT,
arXiv:2203.02155); a gap this wide is twice the half-width of the interval of 200 pairs."""


def stage_health(
    record: StageRecord, *, versus_start: Interval | None = None, matched: Interval | None = None
) -> list[Reading]:
    """Return the readings for a stage of any type.

    ``versus_start`` is the win rate of a policy over the model it started from, ``matched`` the same for answers of
    equal length; other stages ignore them. Stages without readings of their own still get those of every training.
    """
    if not record.rows and record.stage != "reward":
        return []
    if record.stage == "policy":
        budget = kl_budget(record.config)
        own = policy_health(record.rows, budget=budget, versus_start=versus_start, matched=matched)
    elif record.stage == "sft":
        own = sft_health(record.rows)
    elif record.stage == "reward":
        own = reward_health(record.rows, record.metrics)
    else:
        own = []
    return training_health(record.rows) + own


def training_health(rows: Sequence[Row]) -> list[Reading]:
    """Return the readings that every training shares: are all numbers finite, is the gradient calm."""
    readings = [_numbers(rows)] if rows else []
    norms = [x for x in column(rows, "train/grad_norm") if isfinite(x)]
    if len(norms) >= 5:
        middle, largest = float(np.median(norms)), max(norms)
        spike = largest / middle if middle > 0 else 1.0
        calm = spike <= GRADIENT_SPIKE
        readings.append(
            Reading(
                name="Gradient",
                level="ok" if calm else "watch",
                value=f"largest {short(largest)}, median {short(middle)}",
                sentence="The gradient stayed calm."
                if calm
                else f"One step's gradient was {spike:.0f} times the median: look at that batch, and the loss near it.",
            )
        )
    return readings


def sft_health(rows: Sequence[Row]) -> list[Reading]:
    """Return the readings of supervised fine-tuning: did the loss fall, were the answers learnt by heart."""
    readings: list[Reading] = []
    loss = curve(rows, "train/loss")
    if loss:
        readings.append(_loss(loss))
    accuracy = curve(rows, "train/accuracy")
    if accuracy:
        by_heart = accuracy.end > MEMORISED
        readings.append(
            Reading(
                name="Memorising",
                level="watch" if by_heart else "ok",
                value=f"{percent(accuracy.end)} of tokens right",
                sentence="Nearly every token of the demonstrations is predicted: they are being learnt by heart, and "
                "fewer epochs or more data would help."
                if by_heart
                else "The demonstrations are not learnt by heart.",
            )
        )
    heldout = [x for x in column(rows, "heldout/loss") if isfinite(x)]
    if len(heldout) >= 2 and min(heldout) > 0:
        rise = heldout[-1] / min(heldout)
        level = rising(rise, watch=HELDOUT_RISE_WATCH, bad=HELDOUT_RISE_BAD)
        readings.append(
            Reading(
                name="Overfitting",
                level=level,
                value=f"held-out loss {short(heldout[-1])}, lowest {short(min(heldout))}",
                sentence="The held-out loss is at its lowest, or near it."
                if level == "ok"
                else f"The held-out loss is {percent(rise - 1)} above its lowest: training went past its best point.",
            )
        )
    return readings


def reward_health(rows: Sequence[Row], metrics: Row) -> list[Reading]:
    """Return the readings of a reward model: better than a coin, than a ruler, than noticing which answer was cut
    off."""
    accuracy = metrics.get("heldout/accuracy", nan)
    if not isfinite(accuracy):
        return []
    n = metrics.get("heldout/n", 0.0)
    lo, hi = metrics.get("heldout/accuracy_lo", nan), metrics.get("heldout/accuracy_hi", nan)
    if not (isfinite(lo) and isfinite(hi)):
        lo, hi = wilson(accuracy, n if isfinite(n) else 0.0)
    interval = Interval(mean=accuracy, lo=lo, hi=hi, n=int(n) if isfinite(n) else 0)
    readings = [_coin(interval)]
    for key, what, other in (
        ("heldout/longer_wins", "longer answer", "shorter"),
        ("heldout/finished_wins", "answer that was not cut off", "one that was"),
    ):
        if isfinite(metrics.get(key, nan)):
            readings.append(_against_rule(interval, metrics[key], what, other))
    readings += _flaws(metrics)
    training = curve(rows, "train/accuracy")
    if training:
        gap = training.end - accuracy
        readings.append(
            Reading(
                name="Overfitting",
                level="watch" if gap > OVERFIT_GAP else "ok",
                value=f"training {percent(training.end)}, held out {percent(accuracy)}",
                sentence="It knows its training pairs much better than new ones: fewer epochs or more pairs would help."
                if gap > OVERFIT_GAP
                else "It does about as well on new pairs as on those it learnt from.",
            )
        )
    return readings


def _numbers(rows: Sequence[Row]) -> Reading:
    """Tell whether any metric was NaN or infinite; in a loss, a gradient or a score that is bad, elsewhere worth a
    look."""
    broken = sorted({name for row in rows for name, value in row.items() if not isfinite(value)})
    serious = [name for name in broken if name.endswith(("/loss", "/grad_norm", "/score", "/reward"))]
    return Reading(
        name="Numbers",
        level="bad" if serious else "watch" if broken else "ok",
        value="all finite" if not broken else f"not finite: {', '.join(broken)}",
        sentence="Every number that was logged is finite."
        if not broken
        else "Some numbers were missing or not finite; training on such a step cannot be trusted."
        if serious
        else "Some measures were not defined at some steps (often a batch without any spread).",
    )


def _loss(loss: Trend) -> Reading:
    levels: Mapping[int, tuple[Level, str]] = {
        -1: ("ok", "The loss fell."),
        0: (
            "watch",
            "The loss did not clearly fall: too few steps to tell, or a learning rate that is too low or too high.",
        ),
        1: ("bad", "The loss rose: the learning rate is likely too high, or the data changed on the way."),
    }
    level, sentence = levels[loss.direction]
    return Reading(name="Loss", level=level, value=f"{short(loss.start)} to {short(loss.end)}", sentence=sentence)


def _coin(accuracy: Interval) -> Reading:
    level: Level = "ok" if accuracy.verdict > 0 else "watch" if accuracy.mean > 0.5 else "bad"
    sentences: Mapping[Level, str] = {
        "ok": "It tells the better answer from the worse more often than a coin would.",
        "watch": "It may be no better than a coin: the interval includes one half.",
        "bad": "It is no better than a coin; a policy trained on it learns noise.",
    }
    bounds = f"{percent(accuracy.mean)} ({percent(accuracy.lo)} to {percent(accuracy.hi)})"
    return Reading(name="Held-out accuracy", level=level, value=bounds, sentence=sentences[level])


def _against_rule(accuracy: Interval, share: float, what: str, other: str) -> Reading:
    """Compare with a rule that reads nothing: prefer the ``what``; where that errs more often than not, prefer the
    other.

    Fine only when the two intervals lie apart. Both come from the same pairs, so that this asks for more than it must.
    """
    rule = max(share, 1 - share)
    prefer = what if share >= 0.5 else other
    _, rule_hi = wilson(rule, accuracy.n)
    level: Level = "ok" if accuracy.lo > rule_hi else "watch" if accuracy.mean > rule else "bad"
    sentences: Mapping[Level, str] = {
        "ok": f"It knows clearly more than “prefer the {prefer}”.",
        "watch": f"It is ahead of “prefer the {prefer}”, but the two intervals overlap.",
        "bad": f"It is not ahead of “prefer the {prefer}”: that may be all it has learnt.",
    }
    name = "Against length" if "longer" in what else "Against cut-off"
    return Reading(
        name=name, level=level, value=f"{percent(accuracy.mean)} against {percent(rule)}", sentence=sentences[level]
    )


def _flaws(metrics: Row) -> list[Reading]:
    """Name the planted flaws that the model prefers to the sound answer."""
    flaws = {k.removeprefix("heldout/accuracy/"): v for k, v in metrics.items() if k.startswith("heldout/accuracy/")}
    known = {flaw: share for flaw, share in flaws.items() if isfinite(share)}
    if not known:
        return []
    missed = sorted((flaw for flaw, share in known.items() if share < 0.5), key=lambda flaw: known[flaw])
    lowest = min(known, key=lambda flaw: known[flaw])
    return [
        Reading(
            name="Flaws",
            level="watch" if missed else "ok",
            value=f"lowest: {lowest} {percent(known[lowest])}",
            sentence=f"It prefers answers with these flaws: {', '.join(missed)}. A policy will find them."
            if missed
            else "It sees every kind of flaw that it was tested on more often than not.",
        )
    ]
