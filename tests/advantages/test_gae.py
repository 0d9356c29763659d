"""Generalised advantage estimation: numbers by hand, its two ends, slow loop, and garbage past the end."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.advantages.gae import gae


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_numbers_by_hand() -> None:
    """delta = (-.2, -.2, .6); A = (.1515, .37, .60); targets = (.6515, .77, .90)."""
    advantages, targets = gae(row(-0.1, -0.1, 0.9), row(0.5, 0.4, 0.3), torch.ones(1, 3))
    torch.testing.assert_close(advantages, row(0.1515, 0.37, 0.60))
    torch.testing.assert_close(targets, row(0.6515, 0.77, 0.90))


def test_discounted_return_by_hand() -> None:
    """gamma .5, reward (0, 0, 1), no critic, lam 1: the return (.25, .5, 1)."""
    advantages, _ = gae(row(0, 0, 1), row(0, 0, 0), torch.ones(1, 3), gamma=0.5, lam=1.0)
    torch.testing.assert_close(advantages, row(0.25, 0.5, 1.0))


def ragged(seed: int, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    mask = torch.arange(width) < torch.randint(0, width + 1, (rows, 1), generator=generator)
    return rewards, values, mask


SIZES = {"seed": st.integers(0, 2**31), "rows": st.integers(1, 4), "width": st.integers(1, 7)}


@settings(max_examples=60, deadline=None)
@given(**SIZES, gamma=st.sampled_from([1.0, 0.9, 0.5]), lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_slow_loop_agrees(seed: int, rows: int, width: int, gamma: float, lam: float) -> None:
    """The definition: A_t = sum over s >= t of (gamma lam)^(s - t) delta_s."""
    rewards, values, mask = ragged(seed, rows, width)
    advantages, targets = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for b in range(rows):
        r = [rewards[b, t].item() for t in range(width) if mask[b, t]]
        v = [values[b, t].item() for t in range(width) if mask[b, t]] + [0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        for t in range(width):
            expected = sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(r))) if t < len(r) else 0.0
            assert advantages[b, t].item() == pytest.approx(expected, abs=1e-12)
            assert targets[b, t].item() == pytest.approx(expected + v[t] if t < len(r) else 0.0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_the_two_ends_of_lam(seed: int, rows: int, width: int) -> None:
    rewards, values, mask = ragged(seed, rows, width)
    kept, value = rewards * mask, values * mask
    to_go = kept.flip(1).cumsum(1).flip(1)
    monte_carlo, targets = gae(rewards, values, mask, lam=1.0)
    torch.testing.assert_close(monte_carlo, (to_go - value) * mask)
    torch.testing.assert_close(targets, to_go * mask)
    following = torch.cat([value[:, 1:], value.new_zeros(rows, 1)], dim=1)
    torch.testing.assert_close(gae(rewards, values, mask, lam=0.0)[0], (kept + following - value) * mask)


def test_one_score_at_the_end_credits_every_token_equally() -> None:
    """gamma = lam = 1: A = R - V; with a critic that knows R, nothing is left, so nothing is learnt."""
    mask = torch.tensor([[1, 1, 1, 0]])
    values = row(0.5, -0.2, 0.1, 9.0)
    advantages, _ = gae(row(0, 0, 2, 0), values, mask, lam=1.0)
    torch.testing.assert_close(advantages, row(1.5, 2.2, 1.9, 0.0))
    perfect, _ = gae(row(0, 0, 2, 0), row(2, 2, 2, 2), mask)
    assert torch.equal(perfect, torch.zeros_like(perfect))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e30, 7.0])
def test_garbage_past_the_end_is_no_bootstrap(garbage: float) -> None:
    rewards, values, mask = ragged(seed=7, rows=4, width=6)
    clean = gae(rewards * mask, values * mask, mask)
    dirty = gae(rewards.masked_fill(~mask, garbage), values.masked_fill(~mask, garbage), mask.float())
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert (b[~mask] == 0).all()


def test_gaps_and_left_padding_are_passed_over() -> None:
    """An answer with a tool's turn in the middle, or padded on the left, gets what it gets when written without."""
    rewards, values = row(-0.1, -0.1, 0.9), row(0.5, 0.4, 0.3)
    whole = gae(rewards, values, torch.ones(1, 3))
    mask = torch.tensor([[0, 1, 0, 0, 1, 1, 0]], dtype=torch.bool)
    wide_rewards, wide_values = torch.full((2, 1, 7), math.nan, dtype=torch.float64)
    wide_rewards[mask], wide_values[mask] = rewards[0], values[0]
    for wide, narrow in zip(gae(wide_rewards, wide_values, mask), whole, strict=True):
        torch.testing.assert_close(wide[mask], narrow[0])
        assert (wide[~mask] == 0).all()


def test_no_gradient_and_the_dtype_stays() -> None:
    values = torch.zeros(1, 2, requires_grad=True)
    for result in gae(torch.ones(1, 2, requires_grad=True), values, torch.ones(1, 2)):
        assert not result.requires_grad
        assert result.dtype == torch.float32


def test_inputs_are_left_alone() -> None:
    rewards, values, mask = ragged(seed=1, rows=3, width=4)
    before = rewards.clone(), values.clone(), mask.clone()
    gae(rewards, values, mask)
    for now, then in zip((rewards, values, mask), before, strict=True):
        assert torch.equal(now, then)


def test_no_tokens_at_all() -> None:
    advantages, targets = gae(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0))
    assert advantages.shape == targets.shape == (2, 0)
