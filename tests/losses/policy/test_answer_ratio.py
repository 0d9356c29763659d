"""Losses other than PPO's by hand-worked numbers: one ratio an answer, a capped weight, none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.losses.policy._terms import PolicyTerms
from trimtab.losses.policy.cispo import cispo
from trimtab.losses.policy.gspo import gspo
from trimtab.losses.policy.ppo import ppo
from trimtab.losses.policy.reinforce import reinforce
from trimtab.losses.policy.rloo import rloo
from trimtab.tensors.aggregate import Totals, aggregate


def moved(*ratios: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of one answer that has moved by these ratios, and those from before."""
    old = -torch.arange(1.0, len(ratios) + 1, dtype=torch.float64).unsqueeze(0)
    return (old + torch.tensor([ratios], dtype=torch.float64).log()).requires_grad_(), old


def slope(terms: PolicyTerms, logps: Tensor, how: str) -> tuple[float, list[float]]:
    """Value and gradient of the aggregated loss of one answer."""
    mask = torch.ones_like(terms.ratio, dtype=torch.bool)
    loss = aggregate(terms.loss, mask, how, Totals(tokens=mask.sum().item(), sequences=1)).sum()  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, logps)
    return loss.item(), gradient[0].tolist()


def test_gspo_takes_the_geometric_mean() -> None:
    logps, old = moved(1.10, 0.95, 1.30, 0.90)
    advantages, mask = torch.full((1, 4), 2.0, dtype=torch.float64), torch.ones(1, 4)
    terms = gspo(logps, old, advantages, mask, clip_low=0.2, clip_high=0.2)
    assert terms.ratio[0].tolist() == pytest.approx([1.0515] * 4, abs=5e-5)
    s = (1.10 * 0.95 * 1.30 * 0.90) ** 0.25
    value, gradient = slope(terms, logps, "seq-mean-token-mean")
    assert value == pytest.approx(-2 * s)
    assert gradient == pytest.approx([-2 * s / 4] * 4)  # the same for every token
    tight = gspo(logps, old, advantages, mask)  # 4e-4: held, and no token learns
    assert tight.clipped.tolist() == [[1] * 4]
    assert slope(tight, logps, "seq-mean-token-mean") == (pytest.approx(-2 * 1.0004), [0] * 4)


def test_gspo_of_one_token_is_ppo_and_equal_ratios_are_theirs() -> None:
    logps, old = moved(1.1)
    advantages = torch.full((1, 1), -1.5, dtype=torch.float64)
    for widths in ({"clip_low": 0.2, "clip_high": 0.2}, {"clip_low": 0.05, "clip_high": 0.05}):
        mine = gspo(logps, old, advantages, torch.ones(1, 1), **widths)
        torch.testing.assert_close(mine.loss, ppo(logps, old, advantages, **widths).loss)
    logps, old = moved(1.07, 1.07, 1.07)
    assert gspo(logps, old, torch.ones(1, 3).double(), torch.ones(1, 3)).ratio[0, 0].item() == pytest.approx(1.07)


def test_rloo_takes_the_whole_answers_ratio() -> None:
    """The ratio of the answer is 1.1 x 1.05 = 1.155; the loss -A rho reaches every token whole."""
    logps, old = moved(1.1, 1.05)
    advantages, mask = torch.full((1, 2), 3.0, dtype=torch.float64), torch.ones(1, 2)
    terms = rloo(logps, old, advantages, mask)
    assert terms.ratio[0].tolist() == pytest.approx([1.155] * 2)
    value, gradient = slope(terms, logps, "seq-mean-token-sum")
    assert value == pytest.approx(-3 * 1.155)
    assert gradient == pytest.approx([-3 * 1.155] * 2)
    logps, old = moved(1.1, 1.15)  # 1.265: each token would be free, the answer is not
    terms = rloo(logps, old, advantages, mask)
    assert slope(terms, logps, "seq-mean-token-sum") == (pytest.approx(-3 * 1.2), [0, 0])


def test_rloos_first_update_is_reinforce() -> None:
    logps, old = moved(1, 1, 1)
    advantages = torch.full((1, 3), -0.7, dtype=torch.float64)
    mine = slope(rloo(logps, old, advantages, torch.ones(1, 3)), logps, "seq-mean-token-sum")[1]
    theirs = slope(reinforce(logps, old, advantages), logps, "seq-mean-token-sum")[1]
    assert mine == pytest.approx(theirs)
    assert mine == pytest.approx([0.7] * 3)


def test_cispo_keeps_the_gradient_that_ppo_drops() -> None:
    """Ratio 2, cap 1.5, A 2, log-probability -.7: loss 2.1 with gradient -3; PPO's is 0."""
    logps = torch.tensor([[-0.7]], dtype=torch.float64, requires_grad=True)
    old, advantages = logps.detach() - math.log(2), torch.tensor([[2.0]], dtype=torch.float64)
    terms = cispo(logps, old, advantages, clip_high=0.5)
    assert slope(terms, logps, "token-mean") == (pytest.approx(2.1), [pytest.approx(-3)])
    assert terms.clipped.item() == 1
    assert slope(ppo(logps, old, advantages), logps, "token-mean")[1] == [0]
    free = cispo(logps, old, advantages)  # the default cap is 5
    assert slope(free, logps, "token-mean")[1] == [pytest.approx(-4)]
    assert free.clipped.item() == 0


def test_cispo_has_no_lower_bound() -> None:
    logps, old = moved(0.01)
    advantages = torch.tensor([[-1.0]], dtype=torch.float64)
    assert slope(cispo(logps, old, advantages), logps, "token-mean")[1] == [pytest.approx(0.01)]
    assert slope(ppo(logps, old, advantages), logps, "token-mean")[1] == [0]


def test_reinforce() -> None:
    logps, old = moved(1.5, 0.5)
    terms = reinforce(logps, old, torch.tensor([[2.0, -1.0]], dtype=torch.float64))
    assert terms.loss[0].tolist() == pytest.approx([-2 * (math.log(1.5) - 1), math.log(0.5) - 2])
    assert terms.ratio[0].tolist() == pytest.approx([1.5, 0.5])
    assert not terms.clipped.any()


def test_negative_widths_are_refused() -> None:
    logps, old = moved(1.0)
    one = torch.ones(1, 1).double()
    with pytest.raises(ConfigError, match="widths around 1"):
        gspo(logps, old, one, one, clip_low=-0.1)
    with pytest.raises(ConfigError, match="widths around 1"):
        rloo(logps, old, one, one, clip_high=-0.1)
    with pytest.raises(ConfigError, match="width above 1"):
        cispo(logps, old, one, clip_high=-0.1)
