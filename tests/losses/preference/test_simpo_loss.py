"""SimPO: numbers by hand, what length does, and the two ways to write its margin."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses.preference.dpo import dpo
from trimtab.losses.preference.simpo import simpo


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("worse", "gamma", "expected"), [(-1.2, 0.0, 0.474077), (-1.2, 1.4, 1.241154), (-1.0, 1.4, 1.620417)]
)
def test_numbers(worse: float, gamma: float, expected: float) -> None:
    """beta 2.5 on means -1 and -1.2: -ln sigmoid(.5), -ln sigmoid(.5 - 1.4); equal means: ln(1 + e^1.4)."""
    tokens = torch.tensor([4]), torch.tensor([10])
    loss = simpo(f64(-4.0), f64(10 * worse), *tokens, beta=2.5, gamma=gamma)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_gradients_are_over_each_sides_length() -> None:
    """sigmoid(-(.5 - 1.4)) = .710950: 2.5 times that over 4 and over 10 tokens."""
    chosen, rejected = f64(-4.0), f64(-12.0)
    loss = simpo(chosen, rejected, torch.tensor([4]), torch.tensor([10]), beta=2.5, gamma=1.4)
    slopes = [g.item() for g in torch.autograd.grad(loss.sum(), (chosen, rejected))]
    assert slopes == pytest.approx([-2.5 * 0.710950 / 4, 2.5 * 0.710950 / 10], abs=1e-6)


def test_the_defaults_on_equal_means() -> None:
    """ln(1 + e): the start is not ln 2."""
    three = torch.tensor([3])
    assert simpo(f64(-2.0), f64(-2.0), three, three).item() == pytest.approx(math.log(1 + math.e), abs=1e-12)


def test_every_token_said_twice_changes_nothing() -> None:
    once = simpo(f64(-4.0), f64(-12.0), torch.tensor([4]), torch.tensor([10]))
    twice = simpo(f64(-8.0), f64(-12.0), torch.tensor([8]), torch.tensor([10]))
    assert once.item() == twice.item()
    zero = f64(0.0)
    assert dpo(f64(-4.0), f64(-12.0), zero, zero).item() != dpo(f64(-8.0), f64(-12.0), zero, zero).item()


@settings(max_examples=60, deadline=None)
@given(chosen=st.floats(-50, 0), rejected=st.floats(-50, 0), tokens=st.integers(1, 40), beta=st.floats(0.1, 10))
def test_equal_lengths_and_no_margin_are_dpo_without_a_reference(
    chosen: float, rejected: float, tokens: int, beta: float
) -> None:
    length, zero = torch.tensor([tokens]), f64(0.0)
    ours = simpo(f64(chosen), f64(rejected), length, length, beta=beta, gamma=0.0)
    torch.testing.assert_close(ours, dpo(f64(chosen), f64(rejected), zero, zero, beta=beta / tokens))


@settings(max_examples=60, deadline=None)
@given(beta=st.floats(0.1, 10), ratio=st.floats(0, 2))
def test_gamma_is_beta_times_the_ratio(beta: float, ratio: float) -> None:
    """With gamma = beta * ratio, the margin comes off inside: -ln sigmoid(beta (difference - ratio))."""
    one = torch.tensor([1])
    ours = simpo(f64(-1.0), f64(-1.7), one, one, beta=beta, gamma=beta * ratio)
    assert ours.item() == pytest.approx(math.log1p(math.exp(-beta * (0.7 - ratio))), rel=1e-9)
