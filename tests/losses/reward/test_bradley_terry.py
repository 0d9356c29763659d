"""Bradley-Terry and centering: numbers by hand, gradients, a tournament."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses.reward._terms import centering
from trimtab.losses.reward.bradley_terry import bradley_terry


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 0.371101), (1.0, 0.798139)])
def test_bradley_terry_numbers_and_gradients(margin: float, expected: float) -> None:
    """(1.2, .4): -ln sigmoid(.8) = .371101, -ln sigmoid(-.2) = .798139; gradients -+(1 - sigmoid(d - m))."""
    better, worse = f64(1.2), f64(0.4)
    loss = bradley_terry(better, worse, margin=margin)
    assert loss.item() == pytest.approx(expected, abs=5e-7)
    up, down = torch.autograd.grad(loss.sum(), (better, worse))
    assert up.item() == pytest.approx(-(1 - sigmoid(0.8 - margin)), abs=1e-12)
    assert (up + down).item() == 0.0


def test_equal_scores_cost_ln_2_and_a_common_shift_nothing() -> None:
    assert bradley_terry(f64(3.0), f64(3.0)).item() == pytest.approx(math.log(2), abs=1e-12)
    better, worse = f64(1.2, -3.0), f64(0.4, 2.0)
    torch.testing.assert_close(bradley_terry(better + 5, worse + 5), bradley_terry(better, worse))


def test_margin_per_pair() -> None:
    """Llama-2's small margins: 1, 2/3, 1/3, 0 at a difference of 1/2."""
    margins = f64(1, 2 / 3, 1 / 3, 0)
    losses = bradley_terry(f64(0.5, 0.5, 0.5, 0.5), f64(0, 0, 0, 0), margin=margins)
    expected = [math.log(1 + math.exp(m - 0.5)) for m in (1, 2 / 3, 1 / 3, 0)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)


def test_soft_label_by_hand() -> None:
    """P .9 at (1.2, .4): .9 * .371101 + .1 * 1.171101 = .451101. P = 1 is the hard loss, P = 1/2 and equal: ln 2."""
    better, worse = f64(1.2), f64(0.4)
    assert bradley_terry(better, worse, probability=0.9).item() == pytest.approx(0.451101, abs=5e-7)
    assert torch.equal(bradley_terry(better, worse, probability=torch.ones(1)), bradley_terry(better, worse))
    assert bradley_terry(worse, worse, probability=0.5).item() == pytest.approx(math.log(2), abs=1e-12)


@given(p=st.floats(0.02, 0.98))
def test_soft_label_is_least_where_the_model_agrees(p: float) -> None:
    difference = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64, requires_grad=True)
    loss = bradley_terry(difference, torch.zeros_like(difference), probability=p)
    (gradient,) = torch.autograd.grad(loss.sum(), difference)
    assert gradient.item() == pytest.approx(0.0, abs=1e-12)


@given(a=st.floats(-9, 9), b=st.floats(-9, 9), p=st.floats(0, 1), margin=st.floats(0, 3))
def test_swapping_the_sides(a: float, b: float, p: float, margin: float) -> None:
    here = bradley_terry(f64(a), f64(b), probability=p, margin=margin)
    there = bradley_terry(f64(b), f64(a), probability=1 - p, margin=margin)
    torch.testing.assert_close(here, there)


def test_a_tie_with_a_margin_still_pulls_to_equality() -> None:
    better = f64(0.0)
    (gradient,) = torch.autograd.grad(bradley_terry(better, f64(0.0), probability=0.5, margin=1.0).sum(), better)
    assert gradient.item() == 0.0


@pytest.mark.parametrize("probability", [1.0, 0.7, 0.0])
def test_finite_at_huge_differences_in_float32(probability: float) -> None:
    better = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry(better, torch.zeros(2), probability=probability)
    (gradient,) = torch.autograd.grad(loss.sum(), better)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    if probability == 1.0:
        assert loss.tolist() == [0.0, 1e4]
        assert gradient.tolist() == [0.0, -1.0]


def test_a_tournament_recovers_its_strengths() -> None:
    """Strengths 4, 2, 1: a beats b 4:2, a beats c 4:1, b beats c 2:1; fitted scores differ by ln 2 each."""
    wins = torch.tensor([4 / 6, 4 / 5, 2 / 3], dtype=torch.float64)
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = bradley_terry(scores[[0, 0, 1]], scores[[1, 2, 2]], probability=wins).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    differences = (scores[:2] - scores[1:]).detach()
    torch.testing.assert_close(differences, torch.full((2,), math.log(2), dtype=torch.float64), rtol=0, atol=1e-6)


def test_centering_by_hand() -> None:
    """(1.2 + .4)^2 = 2.56, which at weight .01 adds .0256."""
    better, worse = f64(1.2, 1.0), f64(0.4, -1.0)
    penalty = centering(better, worse)
    assert (0.01 * penalty).tolist() == pytest.approx([0.0256, 0.0], abs=1e-12)
    up, down = torch.autograd.grad(penalty.sum(), (better, worse))
    assert torch.equal(up, down)  # the ranking is untouched
