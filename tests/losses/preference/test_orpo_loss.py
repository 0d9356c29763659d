"""ORPO: odds by hand, gradients, and sure answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses.preference._shared import log1mexp, log_odds
from trimtab.losses.preference.orpo import orpo


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def test_numbers_and_gradients() -> None:
    """Means -.5 and -1: odds 1.541494 and .581977, their log ratio .974077, -ln sigmoid .320300; 4 and 2 tokens.

    Loss .5 + .1 * .320300. On a mean: -1 - .1 * (1 - e^-.3203) / (1 - e^-.5) and .1 * (1 - e^-.3203) / (1 - e^-1).
    """
    odds = log_odds(f64(-0.5, -1.0)).exp()
    assert odds.tolist() == pytest.approx([1.541494, 0.581977], abs=1e-6)
    assert (odds[0] / odds[1]).log().item() == pytest.approx(0.974077, abs=1e-6)
    chosen, rejected, tokens = f64(-2.0), f64(-2.0), (torch.tensor([4]), torch.tensor([2]))
    loss = orpo(chosen, rejected, *tokens)
    assert loss.item() == pytest.approx(0.532030, abs=1e-6)
    assert orpo(chosen, rejected, *tokens, weight=1.0).item() == pytest.approx(0.820300, abs=1e-6)
    up, down = (g.item() for g in torch.autograd.grad(loss.sum(), (chosen, rejected)))
    assert up == pytest.approx(-(1 + 0.1 * 0.274069 / 0.393469) / 4, abs=1e-6)
    assert down == pytest.approx(0.1 * 0.274069 / 0.632121 / 2, abs=1e-6)


def test_equal_means_cost_ln_2_in_the_odds() -> None:
    loss = orpo(f64(-6.0), f64(-3.0), torch.tensor([4]), torch.tensor([2]))
    assert loss.item() == pytest.approx(1.5 + 0.1 * math.log(2), abs=1e-12)


def test_without_weight_it_is_fine_tuning_on_the_chosen_answer() -> None:
    chosen, rejected = f64(-6.0), f64(-3.0)
    loss = orpo(chosen, rejected, torch.tensor([4]), torch.tensor([2]), weight=0.0)
    assert loss.item() == 1.5
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert up.item() == -0.25
    assert down.item() == 0.0


@settings(max_examples=60, deadline=None)
@given(a=st.floats(-30, -1e-3), b=st.floats(-30, -1e-3))
def test_the_ratio_of_the_odds_is_the_ratio_of_the_odds(a: float, b: float) -> None:
    expected = math.log(math.exp(a) * -math.expm1(b)) - math.log(math.exp(b) * -math.expm1(a))
    assert (log_odds(f64(a)) - log_odds(f64(b))).item() == pytest.approx(expected, abs=1e-9)


def test_unlikely_answers_have_the_ratio_of_their_probabilities() -> None:
    assert (log_odds(f64(-60.0)) - log_odds(f64(-63.0))).item() == pytest.approx(3.0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-700, -1e-6))
def test_log1mexp_keeps_its_digits_in_float32(x: float) -> None:
    """Against float64, where log1p is exact far from 0 and expm1 near it."""
    single = torch.tensor(x, dtype=torch.float32)
    at = single.item()
    expected = math.log1p(-math.exp(at)) if at < -1 else math.log(-math.expm1(at))
    assert log1mexp(single).item() == pytest.approx(expected, rel=1e-6, abs=1e-37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sure_answer_of_one_token_is_finite(dtype: torch.dtype) -> None:
    """Probability 1 has infinite odds: it is held at 1 - 1e-6, where only the first term still pulls."""
    chosen, rejected = (torch.tensor([0.0, -1.0], dtype=dtype, requires_grad=True) for _ in range(2))
    one = torch.ones(2, dtype=torch.int64)
    loss = orpo(chosen, rejected.flip(0), one, one)
    assert loss.isfinite().all()
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert up[0].item() == -1.0
    assert up.isfinite().all()
    assert down.isfinite().all()
