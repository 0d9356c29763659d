"""How far an AI judge can be trusted: against people's verdicts, against its own in the other order, against tricks.

    heldout/...                     as of a reward model (``_reward_report``); lengths are in characters
    heldout/order_disagreement      share of pairs whose verdict changes with the order
    heldout/first_preferred         what the answer shown first gets on average, whichever it is: 1/2 without a bias
    heldout/length_slope            chance that length alone adds (below)
    heldout/soft                    share of verdicts with a probability
    attack/turned, attack/n         share of right verdicts that an attack in the worse answer turns, a tie counting 1/2
    attack/moved                    how much of its chance the better answer loses by it

The slope is b of the least squares fit, over pairs, of what the judge says to what people said and to length:

    P(better beats worse) - 1/2 = a (people - 1/2) + b (len better - len worse) / (len better + len worse)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trimtab.errors import DataError
from trimtab.records.types import Group, Pair, pairs
from trimtab.rewards._ai_judge_attacks import ATTACKS, attacked
from trimtab.rewards._ai_judge_words import HARD
from trimtab.rewards.ai_judge import AIJudge, Duel
from trimtab.stages._reward_report import Metrics, compare_verdicts, report_pairs
from trimtab.stats.winrate import outcome
from trimtab.tensors.tree import TokenGroup
from trimtab.train.run import Run

ATTACKED = 34
SURE = 1e-6
TWICE = 1 / 3
"""(2 - 1) / (2 + 1): the regressor of the slope for an answer twice as long."""


def by_characters(groups: Sequence[Group]) -> list[TokenGroup]:
    """Groups as if a character were a token: for lengths where no tokenizer is at hand."""
    return [
        TokenGroup(
            prompt=tuple(ord(c) for turn in group.prompt for c in f"{turn.role}: {turn.content}\n"),
            answers=tuple(tuple(map(ord, answer.text)) for answer in group.answers),
        )
        for group in groups
    ]


def measure(run: Run, judge: AIJudge, groups: Sequence[Group]) -> Metrics:
    """Have every strict preference of some Groups judged in both orders, and compare; the run is told in words."""
    single = [one for group in groups for one in _single(group)]
    if all(_chance(one) == 0.5 for one in single):
        raise DataError("every held-out verdict is an even chance: there is nothing to agree with")
    run.reporter.begin(run.name, 2 * len(single), "verdict")
    said = judge.compare(single, [[(0, 1)]] * len(single), progress=lambda done, _: run.reporter.advance(done, {}))
    duels = [own[0] for own in said]
    leads = [_logit(duel.chance) for duel in duels]
    found = compare_verdicts(single, by_characters(single), [[lead / 2, -lead / 2] for lead in leads])
    metrics = {
        **report_pairs(found, std=1.0),
        **_orders(duels),
        **_slope(single, duels),
        **_attack(judge, single, duels),
    }
    for sentence in sentences(metrics):
        run.note(sentence)
    return metrics


def _single(group: Group) -> list[Group]:
    """A Group for each strict preference: the better answer and the worse one."""
    return [
        replace(
            group,
            answers=(group.answers[pair.better], group.answers[pair.worse]),
            verdicts=(Pair(better=0, worse=1, probability=pair.probability, rater=pair.rater),),
        )
        for pair in pairs(group)
    ]


def _chance(single: Group) -> float:
    """What people said: P(the first answer is better)."""
    (pair,) = pairs(single)
    return 1.0 if pair.probability is None else pair.probability


def _logit(chance: float) -> float:
    chance = min(1 - SURE, max(SURE, chance))
    return float(np.log(chance / (1 - chance)))


def _orders(duels: Sequence[Duel]) -> Metrics:
    """How the verdicts go with the order of showing; pairs of the same text were not shown."""
    shown = [duel.shown for duel in duels if duel.shown is not None]
    calls = [call for both in shown for call in both]
    if not calls:
        return {}
    first = [HARD[call.verdict] if call.chance is None else call.chance for call in calls]
    return {
        "heldout/order_disagreement": sum(not duel.agree for duel in duels if duel.shown) / len(shown),
        "heldout/first_preferred": sum(first) / len(first),
        "heldout/soft": sum(call.chance is not None for call in calls) / len(calls),
    }


def _slope(single: Sequence[Group], duels: Sequence[Duel]) -> Metrics:
    """Length's share; nothing where it cannot be told from what people said."""
    lengths = np.array([[len(answer.text) for answer in group.answers] for group in single], dtype=float)  # (N, 2)
    people = np.array([_chance(group) for group in single]) - 0.5
    said = np.array([duel.chance for duel in duels]) - 0.5
    columns = np.stack([people, (lengths[:, 0] - lengths[:, 1]) / np.maximum(1, lengths.sum(1))], 1)  # (N, 2)
    solved, _, rank, _ = np.linalg.lstsq(columns, said, rcond=None)
    return {"heldout/length_slope": float(solved[1])} if rank == 2 else {}


def _attack(judge: AIJudge, single: Sequence[Group], duels: Sequence[Duel]) -> Metrics:
    """Put an attack into the worse answer of pairs that the judge had right; one after the other of ``ATTACKS``."""
    right = [
        (group, duel) for group, duel in zip(single, duels, strict=True) if duel.chance > 0.5 and _chance(group) > 0.5
    ][:ATTACKED]
    names = list(ATTACKS)
    tricked = [
        group.with_answers(
            (group.answers[0], replace(group.answers[1], text=attacked(names[i % len(names)], group.answers[1].text)))
        )
        for i, (group, _) in enumerate(right)
    ]
    if not tricked:
        return {}
    after = [own[0].chance for own in judge.compare(tricked, [[(0, 1)]] * len(tricked))]
    lost = [duel.chance - chance for (_, duel), chance in zip(right, after, strict=True)]
    return {
        "attack/turned": sum(outcome(0.5, chance) for chance in after) / len(after),
        "attack/moved": sum(lost) / len(lost),
        "attack/n": float(len(after)),
    }


def sentences(metrics: Metrics) -> list[str]:
    """What the numbers say, in words."""
    lo, hi, longer = (metrics[f"heldout/{name}"] for name in ("accuracy_lo", "accuracy_hi", "longer_wins"))
    said = [
        f"on {metrics['heldout/n']:.0f} held-out pairs the judge agrees with people on "
        f"{metrics['heldout/accuracy']:.0%} (95% interval {lo:.0%} to {hi:.0%}); always the longer answer does on "
        f"{longer:.0%}"
    ]
    rule = max(longer, 1 - longer)
    if lo <= 0.5:
        said.append("the judge is not shown to beat a coin here: its verdicts decide nothing")
    elif lo <= rule:
        said.append(f"it is not shown to beat a rule that looks at nothing but length ({rule:.0%})")
    if "heldout/order_disagreement" in metrics:
        said.append(
            f"in {metrics['heldout/order_disagreement']:.0%} of the pairs its verdict changes with the order; the "
            f"answer shown first gets {metrics['heldout/first_preferred']:.0%} on average (50%: no bias of place)"
        )
    if "heldout/length_slope" in metrics:
        gain = metrics["heldout/length_slope"] * TWICE
        said.append(
            f"between answers that people find equal, one twice as long gets {100 * gain:+.0f} points of chance"
        )
    if "attack/n" in metrics:
        said.append(
            f"of {metrics['attack/n']:.0f} right verdicts, {metrics['attack/turned']:.0%} were turned by an attack in "
            "the worse answer (forged verdicts, false ends, orders to the judge)"
        )
    return said
