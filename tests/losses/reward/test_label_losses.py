"""Losses of labels: numbers by hand, missing labels, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses.reward.bce import bce
from trimtab.losses.reward.bradley_terry import bradley_terry
from trimtab.losses.reward.mse import mse

NAN = math.nan


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def test_squared_error_by_hand() -> None:
    """Item 1: errors (1, -2): (1 + 4)/2. Item 2: one label, error 3: 9. Item 3: no label: 0."""
    scores = torch.tensor([[1.0, 0.0], [3.0, 7.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0.0, 2.0], [0.0, NAN], [NAN, NAN]], dtype=torch.float64)
    losses = mse(scores, labels, ~labels.isnan())
    assert losses.tolist() == [2.5, 9.0, 0.0]
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert gradient.tolist() == [[1.0, -2.0], [6.0, 0.0], [0.0, 0.0]]


def test_squared_error_of_one_number_per_item() -> None:
    scores = f64(1.0, 2.0, 3.0)
    losses = mse(scores, torch.tensor([0.0, NAN, 3.0], dtype=torch.float64), torch.tensor([1, 0, 1]))
    assert losses.tolist() == [1.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert gradient.tolist() == [2.0, 0.0, 0.0]


def test_no_gradient_where_the_score_is_the_label() -> None:
    scores = f64(1.0, -2.0)
    (gradient,) = torch.autograd.grad(mse(scores, scores.detach(), torch.ones(2)).sum(), scores)
    assert gradient.tolist() == [0.0, 0.0]


def test_cross_entropy_by_hand() -> None:
    """(.8, -.2) for (1, 0): -ln sigmoid(.8) = .371101, -ln sigmoid(.2) = .598139, mean .484620.

    A label of .9 at .8: .9 * .371101 + .1 * 1.171101 = .451101; the other is missing. No label: 0.
    """
    scores = torch.tensor([[0.8, -0.2], [0.8, 5.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0], [0.9, NAN], [NAN, NAN]], dtype=torch.float64)
    losses = bce(scores, labels, ~labels.isnan())
    assert losses.tolist() == pytest.approx([0.484620, 0.451101, 0.0], abs=5e-7)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    chance = 1 / (1 + math.exp(-0.8))
    low = 1 / (1 + math.exp(0.2))
    assert gradient[0].tolist() == pytest.approx([(chance - 1) / 2, low / 2], abs=1e-12)
    assert gradient[1].tolist() == pytest.approx([chance - 0.9, 0.0], abs=1e-12)
    assert gradient[2].tolist() == [0.0, 0.0]


@given(logit=st.floats(-30, 30), label=st.floats(0, 1))
def test_cross_entropy_is_a_pair_against_zero(logit: float, label: float) -> None:
    here = bce(f64(logit), f64(label).detach(), torch.ones(1))
    torch.testing.assert_close(here, bradley_terry(f64(logit), f64(0.0), probability=label))


@given(label=st.floats(0.02, 0.98))
def test_cross_entropy_is_least_where_the_chance_is_the_label(label: float) -> None:
    scores = f64(math.log(label / (1 - label)))
    (gradient,) = torch.autograd.grad(bce(scores, torch.tensor([label], dtype=torch.float64), torch.ones(1)), scores)
    assert gradient.item() == pytest.approx(0.0, abs=1e-12)
