"""Baselines other than a critic, by hand-worked numbers: leave-one-out, the greedy answer, none."""

from __future__ import annotations

import pytest
import torch

from trimtab.advantages.grpo import grpo
from trimtab.advantages.remax import remax
from trimtab.advantages.returns import returns
from trimtab.advantages.rloo import rloo
from trimtab.tensors.masked import masked_mean, masked_var, whiten
from trimtab.tensors.shaping import token_rewards


def leave_one_out(scores: list[float], group: list[int]) -> list[float]:
    rewards = torch.tensor([[0.5 * s, 0.5 * s] for s in scores], dtype=torch.float64)
    found = rloo(rewards, torch.ones(len(scores), 2), torch.tensor(group))
    assert torch.equal(found[:, 0], found[:, 1])
    return found[:, 0].tolist()


def test_leave_one_out() -> None:
    assert leave_one_out([2, 1, 0.5, 0.5], [0] * 4) == pytest.approx([4 / 3, 0, -2 / 3, -2 / 3])
    assert leave_one_out([1, 0, 0, 0], [0] * 4) == pytest.approx([1, *[-1 / 3] * 3])
    assert leave_one_out([1] + [0] * 7, [0] * 8)[:2] == pytest.approx([1, -1 / 7])
    assert leave_one_out([3, 1, 7, 7], [0, 0, 1, 1]) == pytest.approx([2, -2, 0, 0])
    assert leave_one_out([3], [0]) == [0]


def test_leave_one_out_is_grpo_unscaled_times_k_over_k_less_1() -> None:
    rewards = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask, group = torch.ones(12, 3), torch.arange(3).repeat_interleave(4)
    torch.testing.assert_close(rloo(rewards, mask, group), grpo(rewards, mask, group, scale=False) * 4 / 3)


def test_returns_with_the_penalty_still_to_come() -> None:
    """k1 = (.1, .2, .05), score 1, beta .1: (.965, .975, .995); whitened over the batch: mean 0, variance 1."""
    logps = torch.tensor([[-1.0, -1.0, -1.0]], dtype=torch.float64)
    k1 = torch.tensor([[0.1, 0.2, 0.05]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = returns(token_rewards(torch.ones(1).double(), logps, logps - k1, mask, beta=0.1), mask)
    torch.testing.assert_close(found, torch.tensor([[0.965, 0.975, 0.995]], dtype=torch.float64))
    even = whiten(found, mask)
    assert masked_mean(even, mask).item() == pytest.approx(0)
    assert masked_var(even, mask).item() == pytest.approx(1, rel=1e-3)
    free = returns(token_rewards(torch.ones(1).double(), logps, logps - k1, mask, beta=0.0), mask)
    assert free.tolist() == [[1, 1, 1]]  # without a penalty every token has the same


REWARDS = torch.tensor(
    [[-0.1, -0.2, 0.9], [-0.3, 2.0, 0.0]], dtype=torch.float64
)  # penalties, and scores 1 and 2 at the end
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
SCORES, GREEDY = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, 2.0]).double()


def test_the_greedy_answer_as_baseline() -> None:
    found = remax(REWARDS, MASK, SCORES, GREEDY)
    assert found.tolist() == [pytest.approx(x) for x in ([0.1, 0.2, 0.4], [-0.3, 0.0, 0.0])]
    half = remax(REWARDS, MASK, SCORES, GREEDY, gamma=0.5)[0].tolist()
    assert half == pytest.approx([-0.1 - 0.1 + 0.225 - 0.5, -0.2 + 0.45 - 0.5, 0.9 - 0.5])


def test_the_releases_credit_is_a_tokens_own_penalty() -> None:
    """Score less baseline .5 and 0, with the penalty of that token alone; a discount counts tokens to the end."""
    found = remax(REWARDS, MASK, SCORES, GREEDY, kl_credit="token")
    assert found.tolist() == [pytest.approx(x) for x in ([0.4, 0.3, 0.4], [-0.3, 0.0, 0.0])]
    assert remax(REWARDS, MASK, SCORES, GREEDY, kl_credit="token", gamma=0.5)[0].tolist() == pytest.approx(
        [0.125 - 0.1, 0.25 - 0.2, 0.5 - 0.1]
    )


def test_the_greedy_answer_itself_teaches_nothing_and_a_shift_of_all_scores_changes_nothing() -> None:
    rewards = token_rewards(GREEDY, torch.zeros(2, 3).double(), torch.zeros(2, 3).double(), MASK, beta=0.1)
    for credit in ("rest", "token"):
        assert not remax(rewards, MASK, GREEDY, GREEDY, kl_credit=credit).any()  # type: ignore[arg-type]
        moved = remax(REWARDS + 7 * (torch.arange(3) == MASK.sum(1, keepdim=True) - 1), MASK, SCORES + 7, GREEDY + 7)
        torch.testing.assert_close(moved, remax(REWARDS, MASK, SCORES, GREEDY))
