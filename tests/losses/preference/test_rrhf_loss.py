"""RRHF: numbers by hand, order, ties, and what stands off the mask.

Three answers with means -1, -.5 and -2 over 2, 4 and 1 tokens, so each sums to -2; scores 1, 0 and .5.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.losses.preference.rrhf import rrhf

TOKENS = torch.tensor([[2, 4, 1]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def table(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64, requires_grad=True)


LOGPS = (-2.0, -2.0, -2.0)
SCORES = table(1.0, 0.0, 0.5)


def test_numbers_and_gradients() -> None:
    """Second under first: .5; second under third: 1.5; third under first: right already. 2 + NLL 2 = 4.

    On the means (-1, 2, -1), over the lengths (-.5, .5, -1), and -1 on the best.
    """
    logps = table(*LOGPS)
    loss = rrhf(logps, TOKENS, SCORES, ALL)
    assert loss.tolist() == [4.0]
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == [[-1.5, 0.5, -1.0]]
    assert rrhf(logps, TOKENS, SCORES, ALL, weight=100.0).tolist() == [202.0]
    assert rrhf(logps, TOKENS, SCORES, ALL, weight=0.0).tolist() == [2.0]


def test_the_right_order_has_no_ranking_loss_and_no_gradient_from_it() -> None:
    """Means -1, -.5, -2 with scores .5, 1, 0: only the second's own -1 on its sum is left."""
    logps = table(*LOGPS)
    loss = rrhf(logps, TOKENS, table(0.5, 1.0, 0.0), ALL, weight=1000.0)
    assert loss.tolist() == [2.0]
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == [[0.0, -1.0, 0.0]]


def test_only_the_order_of_the_scores_counts() -> None:
    logps = table(-1.0, -7.0, -2.0)
    for scores in ((10.0, -10.0, 9.99), (math.exp(1.0), 1.0, math.exp(0.5)), (1e6, 0.0, 1.0)):
        assert torch.equal(rrhf(logps, TOKENS, table(*scores), ALL), rrhf(logps, TOKENS, SCORES, ALL))


def test_equal_scores_make_no_pair_and_the_first_of_the_best_is_taken() -> None:
    """All equal: NLL of the first, 2. Second and third best and equal: pairs with the first only, NLL of the second.

    Then first under second: -1 + .5 < 0; first under third: -1 + 2 = 1; so 1 + 3.
    """
    assert rrhf(table(-2.0, -3.0, -4.0), TOKENS, table(7.0, 7.0, 7.0), ALL).tolist() == [2.0]
    assert rrhf(table(-2.0, -2.0, -2.0), TOKENS, table(0.0, 1.0, 1.0), ALL).tolist() == [3.0]
    assert rrhf(table(-2.0, -3.0, -2.0), TOKENS, table(0.0, 1.0, 1.0), ALL).tolist() == [4.0 + 0.0]


def test_one_answer_is_fine_tuning() -> None:
    logps = table(-2.0, -1e4, 5.0)
    loss = rrhf(logps, TOKENS, table(-3.0, 9.0, 9.0), torch.tensor([[True, False, False]]))
    assert loss.tolist() == [2.0]
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == [[-1.0, 0.0, 0.0]]


@pytest.mark.parametrize("score", [1e9, 0.5, -1e9])
def test_what_stands_off_the_mask_does_not_matter(score: float) -> None:
    """A length of zero, too: no nan in the loss or in the gradient."""
    mask = torch.tensor([[True, True, True, False]])
    logps, tokens = table(*LOGPS, -1e4), torch.tensor([[2, 4, 1, 0]])
    loss = rrhf(logps, tokens, table(1.0, 0.0, 0.5, score), mask)
    assert loss.tolist() == [4.0]
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == [[-1.5, 0.5, -1.0, 0.0]]


def test_a_prompt_without_answers_costs_nothing() -> None:
    logps = table(*LOGPS)
    loss = rrhf(logps, TOKENS, SCORES, ~ALL)
    assert loss.tolist() == [0.0]
    assert torch.autograd.grad(loss.sum(), logps)[0].tolist() == [[0.0, 0.0, 0.0]]


def test_length_is_normalised_by_each_answers_own_tokens() -> None:
    """The same sums over equal lengths are equal means: no ranking loss is left, and the order of sums says nothing."""
    assert rrhf(table(*LOGPS), torch.tensor([[3, 3, 3]]), SCORES, ALL).tolist() == [2.0]
