"""Which estimators are unbiased: every possible round on a small bandit, through advantage, loss and aggregation.

Three arms, answers of one token, two answers a prompt: nine rounds, each with its probability. The exact gradient of
the expected reward is pi_a (r_a - E r).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.registry import ADVANTAGES, POLICY_LOSSES
from trimtab.tensors.aggregate import Totals, aggregate
from trimtab.tensors.masked import whiten

K = 2
EVEN = (0.0, 0.0, 0.0)


def exact(logits: tuple[float, ...], rewards: tuple[float, ...]) -> list[float]:
    pi, r = torch.tensor(logits).double().softmax(0), torch.tensor(rewards).double()
    return (pi * (r - (pi * r).sum())).tolist()


def call(entry: Any, given: Mapping[str, Tensor], **options: Any) -> Any:
    return entry.function(
        *(given[name] for name in inspect.signature(entry.function).parameters if name not in entry.options), **options
    )


def expected(
    advantage: str, loss: str, how: str, rewards: tuple[float, ...], *, logits: tuple[float, ...] = EVEN,
    whitened: bool = False, behaviour: tuple[float, ...] | None = None, **options: Any,
) -> list[float]:  # fmt: skip
    """Minus the expected gradient of the loss by the logits, over all rounds of K answers.

    ``behaviour``: the logits that the answers are drawn by, with pi / behaviour as the weight of a token.
    """
    total = torch.zeros(3, dtype=torch.float64)
    drawn = torch.tensor(behaviour or logits).double().log_softmax(0)
    score = torch.tensor(rewards).double()
    greedy = score[int(torch.tensor(logits).argmax())]
    for arms in itertools.product(range(3), repeat=K):
        theta = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        chosen = torch.tensor(arms)
        logps = theta.log_softmax(0)[chosen].unsqueeze(1)  # (K, 1)
        mask = torch.ones(K, 1, dtype=torch.bool)
        given = {
            "rewards": score[chosen].unsqueeze(1), "mask": mask, "group": torch.zeros(K, dtype=torch.long),
            "scores": score[chosen], "baseline": greedy.expand(K),
        }  # fmt: skip
        a = call(ADVANTAGES[advantage], given, **options)
        a = whiten(a, mask) if whitened else a
        terms = call(POLICY_LOSSES[loss], {"logps": logps, "old_logps": logps.detach(), "advantages": a, "mask": mask})
        weights = (logps.detach() - drawn[chosen].unsqueeze(1)).exp()
        totals = Totals(tokens=K, sequences=K, length=1)
        value = aggregate(terms.loss * weights, mask, how, totals).sum()  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(value, theta)
        total -= drawn[chosen].sum().exp() * gradient
    return total.tolist()


REWARDS = [(1.0, 0.0, 0.0), (1.0, 0.1, 0.0), (-2.0, 3.0, 0.5)]
LOGITS = [EVEN, (0.5, -1.0, 0.2)]


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize(
    ("advantage", "loss"),
    [("rloo", "rloo"), ("rloo", "ppo"), ("rloo", "reinforce"), ("remax", "reinforce"), ("returns", "reinforce"),
     ("rloo", "gspo"), ("rloo", "cispo")],
)  # fmt: skip
def test_unbiased(advantage: str, loss: str, rewards: tuple[float, ...], logits: tuple[float, ...]) -> None:
    found = expected(advantage, loss, "seq-mean-token-sum", rewards, logits=logits)
    assert found == pytest.approx(exact(logits, rewards))


def test_the_numbers_themselves() -> None:
    assert exact(EVEN, (1, 0, 0)) == pytest.approx([2 / 9, -1 / 9, -1 / 9])
    assert exact(EVEN, (1, 0.1, 0)) == pytest.approx([0.2111, -0.0889, -0.1222], abs=5e-5)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("rewards", REWARDS)
def test_dr_grpo_is_short_by_k_less_1_over_k(rewards: tuple[float, ...], logits: tuple[float, ...]) -> None:
    found = expected("grpo", "ppo", "seq-mean-token-sum-norm", rewards, logits=logits, scale=False)
    assert found == pytest.approx([(K - 1) / K * g for g in exact(logits, rewards)])


def test_division_by_the_deviation_is_a_bias() -> None:
    """Rewards (1, .1, 0): GRPO's expected step is (.2222, 0, -.2222), blind to how much better an arm is."""
    found = expected("grpo", "ppo", "seq-mean-token-mean", (1, 0.1, 0), eps=0.0, ddof=0)
    assert found == pytest.approx([2 / 9, 0, -2 / 9])
    assert found != pytest.approx(exact(EVEN, (1, 0.1, 0)), abs=0.05)
    same = expected("grpo", "ppo", "seq-mean-token-mean", (1, 0, 0), eps=0.0, ddof=0)
    assert same == pytest.approx(exact(EVEN, (1, 0, 0)))  # by chance: rewards of 0 and 1, and k = 2


def test_whitening_over_the_step_is_a_bias_too() -> None:
    found = expected("returns", "ppo", "token-mean", (1, 0.1, 0), whitened=True)
    assert found != pytest.approx(exact(EVEN, (1, 0.1, 0)), abs=0.05)
    assert sum(found) == pytest.approx(0)


@pytest.mark.parametrize("behaviour", [(1.0, 0.0, -0.5), (-1.0, 0.3, 0.9)])
def test_a_weight_makes_good_who_drew_the_answers(behaviour: tuple[float, ...]) -> None:
    """With w = pi / behaviour and no cap, the gradient is exact whoever drew."""
    mine = expected("returns", "reinforce", "token-mean", (1, 0.1, 0), behaviour=behaviour)
    assert mine == pytest.approx(exact(EVEN, (1, 0.1, 0)))
    mine = expected("remax", "reinforce", "token-mean", (1, 0.1, 0), behaviour=behaviour)
    assert mine == pytest.approx(exact(EVEN, (1, 0.1, 0)))


def test_a_leave_one_out_baseline_stays_fair_when_another_policy_drew() -> None:
    found = expected("rloo", "reinforce", "token-mean", (1, 0.1, 0), behaviour=(1.0, 0.0, -0.5))
    assert found == pytest.approx(exact(EVEN, (1, 0.1, 0)))


def test_a_baseline_lowers_the_variance() -> None:
    """Second moments of the step on arm 0: none 1/9 sum, greedy and leave-one-out below it for rewards far from 0."""

    def spread(advantage: str) -> float:
        moment = 0.0
        for arms in itertools.product(range(3), repeat=K):
            chosen = torch.tensor(arms)
            score = torch.tensor([11.0, 10.0, 10.0]).double()
            given = {
                "rewards": score[chosen].unsqueeze(1), "mask": torch.ones(K, 1).bool(),
                "group": torch.zeros(K, dtype=torch.long), "scores": score[chosen], "baseline": score[:1].expand(K),
            }  # fmt: skip
            a = call(ADVANTAGES[advantage], given)[:, 0]
            moment += float((a * ((chosen == 0).double() - 1 / 3)).mean() ** 2) / 9
        return moment

    assert spread("rloo") < 0.1 * spread("returns")
    assert spread("remax") < 0.1 * spread("returns")
