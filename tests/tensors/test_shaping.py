"""Rewards per token: the score's place, the sum, and answers that never ended."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError
from trimtab.tensors.kl import KL_KINDS, KLKind, kl_estimate
from trimtab.tensors.masked import last_true
from trimtab.tensors.shaping import EosShaping, eos_shaping, leave_one_out, reward_to_go, token_rewards


def test_by_hand() -> None:
    """beta .1, policy above the reference by (1, -2, .5): penalties (-.1, .2, -.05), score 1 on the last: .95."""
    ref_logps = torch.tensor([[-3.0, -1.0, -2.0, math.nan], [-1.0, math.nan, math.nan, math.nan]], dtype=torch.float64)
    logps = ref_logps + torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    rewards = token_rewards(torch.tensor([1.0, -2.0], dtype=torch.float64), logps, ref_logps, mask, beta=0.1)
    expected = torch.tensor([[-0.1, 0.2, 0.95, 0.0], [-2.1, 0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(rewards, expected)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), width=st.integers(1, 6), kind=st.sampled_from(KL_KINDS))
def test_sum_identity_last_position_and_slow_loop(seed: int, rows: int, width: int, kind: KLKind) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, generator=generator, dtype=torch.float64)
    logps, ref_logps = -torch.rand(2, rows, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    mask = torch.arange(width) < lengths.unsqueeze(1)
    beta = 0.3
    rewards = token_rewards(scores, logps, ref_logps, mask, beta=beta, kl=kind)
    k = kl_estimate(logps, ref_logps, kind)
    for b in range(rows):
        length = int(lengths[b])
        for t in range(width):
            expected = -beta * k[b, t].item() if t < length else 0.0
            if t == length - 1:
                expected += scores[b].item()
            assert rewards[b, t].item() == pytest.approx(expected, abs=1e-12)
        if length:
            total = scores[b] - beta * k[b, :length].sum()
            assert rewards[b].sum().item() == pytest.approx(total.item(), abs=1e-12)


def test_same_policy_leaves_the_score_alone() -> None:
    logps = -torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([4, 2, 1]).unsqueeze(1)
    scores = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    rewards = token_rewards(scores, logps, logps, mask, beta=0.7)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[torch.arange(3), last_true(mask)] = scores
    assert torch.equal(rewards, expected)


def test_linear_in_beta() -> None:
    generator = torch.Generator().manual_seed(4)
    logps, ref_logps = -torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    mask = torch.ones(3, 4)
    scores = torch.zeros(3, dtype=torch.float64)
    one, two, three = (token_rewards(scores, logps, ref_logps, mask, beta=beta) for beta in (0.1, 0.2, 0.3))
    torch.testing.assert_close(one + two, three)


def test_no_gradient() -> None:
    logps = torch.zeros(1, 2, requires_grad=True)
    scores = torch.zeros(1, requires_grad=True)
    for kind in KL_KINDS:
        rewards = token_rewards(scores, logps, logps, torch.ones(1, 2), beta=0.1, kl=kind)
        assert not rewards.requires_grad


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("none", [2.0, -0.5]), ("replace", [2.0, -1.0]), ("subtract", [2.0, -1.5])],
)
def test_answers_without_an_end(mode: EosShaping, expected: list[float]) -> None:
    scores, ended = torch.tensor([2.0, -0.5]), torch.tensor([True, False])
    assert eos_shaping(scores, ended, mode=mode, penalty=1.0).tolist() == expected


def test_replace_ignores_a_score_that_is_not_a_number() -> None:
    shaped = eos_shaping(torch.tensor([math.nan]), torch.tensor([False]), mode="replace", penalty=1.0)
    assert shaped.tolist() == [-1.0]


def test_wrong_mode_and_negative_penalty_are_refused() -> None:
    scores, ended = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    with pytest.raises(ConfigError, match="did you mean 'replace'"):
        eos_shaping(scores, ended, mode="replaced", penalty=1.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be negative"):
        eos_shaping(scores, ended, mode="replace", penalty=-1.0)


def test_reward_to_go_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0, math.nan], [1.0, 2.0, math.inf, 4.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1]])
    found = reward_to_go(rewards, mask, gamma=0.5)
    assert found.tolist() == [[0.25, 0.5, 1.0, 0.0], [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 0.0, 4.0]]
    assert reward_to_go(rewards, mask)[:, 0].tolist() == [1.0, 7.0]


def test_leave_one_out_by_hand() -> None:
    returns = torch.tensor([2.0, 1.0, 7.0, 0.5, 0.5], dtype=torch.float64)
    found = leave_one_out(returns, torch.tensor([3, 3, 9, 3, 3]))
    assert found.tolist() == pytest.approx([2 / 3, 1.0, 0.0, 3.5 / 3, 3.5 / 3])
    # R - baseline: the worked example of RLOO.
    assert (returns - found)[[0, 1, 3, 4]].tolist() == pytest.approx([4 / 3, 0.0, -2 / 3, -2 / 3])
