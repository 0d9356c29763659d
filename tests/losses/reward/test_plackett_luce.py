"""Plackett-Luce: numbers by hand, ties, and what it must be equal to."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses.reward._terms import centering, list_centering
from trimtab.losses.reward.bradley_terry import bradley_terry
from trimtab.losses.reward.plackett_luce import plackett_luce

score = st.floats(-8, 8)


def f64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def everything(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def loss(scores: Tensor, *ranks: int) -> Tensor:
    return plackett_luce(scores, torch.tensor([ranks]), everything(scores))


def test_three_answers_by_hand() -> None:
    """(2, 1, 0) in this order: [ln(e^2 + e + 1) - 2] + [ln(e + 1) - 1] = .407606 + .313262 = .720868.

    Turned round: [ln(e^2 + e + 1) - 0] + [ln(e^2 + e) - 1] = 2.407606 + 1.313262 = 3.720868.
    """
    scores = f64([2.0, 1.0, 0.0])
    assert loss(scores, 1, 2, 3).item() == pytest.approx(0.720868, abs=5e-7)
    assert loss(scores, 3, 2, 1).item() == pytest.approx(3.720868, abs=5e-7)


def test_gradient_by_hand() -> None:
    """d/ds: first choice p - (1, 0, 0) over all three, second q - (1, 0) over the last two."""
    scores = f64([2.0, 1.0, 0.0])
    (gradient,) = torch.autograd.grad(loss(scores, 1, 2, 3).sum(), scores)
    p = [math.exp(s) / (math.exp(2) + math.e + 1) for s in (2, 1, 0)]
    q = [math.e / (math.e + 1), 1 / (math.e + 1)]
    assert gradient[0].tolist() == pytest.approx([p[0] - 1, p[1] + q[0] - 1, p[2] + q[1]], abs=1e-12)


def test_ties_compete_only_with_those_below() -> None:
    """{a, b} > c at (1, 0, 0): -ln sigmoid(1) - ln sigmoid(0) = .313262 + .693147; nothing between a and b."""
    scores = f64([1.0, 0.0, 0.0])
    assert loss(scores, 1, 1, 2).item() == pytest.approx(0.313262 + 0.693147, abs=1e-6)
    # a > {b, c}: a against both, ln(e + 2) - 1, and the last tier costs nothing
    assert loss(scores, 1, 2, 2).item() == pytest.approx(math.log(math.e + 2) - 1, abs=1e-12)


def test_a_list_of_one_tier_or_one_answer_teaches_nothing() -> None:
    scores = f64([3.0, -1.0, 0.5], [2.0, 9.0, 9.0])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    losses = plackett_luce(scores, torch.tensor([[4, 4, 4], [1, 2, 3]]), mask)
    assert losses.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert not gradient.any()


@given(a=score, b=score)
def test_two_answers_are_bradley_terry(a: float, b: float) -> None:
    torch.testing.assert_close(loss(f64([a, b]), 1, 2), bradley_terry(f64([a])[0], f64([b])[0]))
    torch.testing.assert_close(loss(f64([a, b]), 7, 3), bradley_terry(f64([b])[0], f64([a])[0]))


@given(scores=st.lists(score, min_size=4, max_size=4))
def test_the_chances_of_all_orders_sum_to_one(scores: list[float]) -> None:
    orders = torch.tensor(list(permutations(range(4))))
    table = torch.tensor([scores], dtype=torch.float64).expand(len(orders), 4)
    assert (-plackett_luce(table, orders, everything(table))).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@given(count=st.integers(1, 6), height=score)
def test_equal_scores_cost_the_log_of_the_number_of_orders(count: int, height: float) -> None:
    scores = torch.full((1, count), height, dtype=torch.float64)
    assert loss(scores, *range(count)).item() == pytest.approx(math.log(math.factorial(count)), abs=1e-9)


def test_only_the_order_of_the_ranks_counts() -> None:
    scores = f64([0.3, -1.0, 2.0])
    torch.testing.assert_close(loss(scores, 1, 2, 3), loss(scores, -5, 0, 90))


def test_permuting_answers_with_their_ranks_changes_nothing() -> None:
    scores, ranks = f64([0.3, -1.0, 2.0, 0.1]), torch.tensor([[2, 1, 3, 2]])
    order = [2, 0, 3, 1]
    there = plackett_luce(scores[:, order], ranks[:, order], everything(scores))
    torch.testing.assert_close(there, plackett_luce(scores, ranks, everything(scores)))


def test_padding_changes_nothing_whatever_stands_there() -> None:
    scores = f64([2.0, 1.0, 0.0])
    padded = torch.tensor([[2.0, math.nan, 1.0, 0.0, math.inf]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True, False]])
    losses = plackett_luce(padded, torch.tensor([[1, 0, 2, 3, 9]]), mask)
    torch.testing.assert_close(losses, loss(scores, 1, 2, 3))
    (gradient,) = torch.autograd.grad(losses.sum(), padded)
    assert gradient.isfinite().all()
    assert not gradient[~mask].any()


def test_fitting_a_choice_finds_its_strengths() -> None:
    """Strengths 3, 2, 1, all six orders weighted by their chance: the fitted scores differ by ln 3/2 and ln 2."""
    strengths = (3.0, 2.0, 1.0)
    orders = list(permutations(range(3)))
    chances = [strengths[o[0]] / 6 * strengths[o[1]] / (6 - strengths[o[0]]) for o in orders]
    ranks = torch.tensor([[order.index(i) for i in range(3)] for order in orders])
    scores = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor(chances, dtype=torch.float64)
    optimiser = torch.optim.LBFGS(
        [scores], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        table = scores.expand(6, 3)
        total = (plackett_luce(table, ranks, everything(table)) * weights).sum()
        total.backward()
        return total

    optimiser.step(closure)
    assert (scores[0, 0] - scores[0, 1]).item() == pytest.approx(math.log(1.5), abs=1e-6)
    assert (scores[0, 1] - scores[0, 2]).item() == pytest.approx(math.log(2.0), abs=1e-6)


def test_centering_of_a_list() -> None:
    """(1.2, .4): (2 * .8)^2 = 2.56, as for a pair; with (0, 0, 3) and one place padded: (2 * 1.5)^2 = 9."""
    pair = f64([1.2, 0.4])
    torch.testing.assert_close(list_centering(pair, everything(pair)), centering(pair[:, 0], pair[:, 1]))
    table = f64([0.0, 7.0, 3.0])
    assert list_centering(table, torch.tensor([[True, False, True]])).item() == pytest.approx(9.0)
