"""Squared error: raters gave numbers.

Shapes: N answers, K attributes.
"""

from __future__ import annotations

from torch import Tensor

from trimtab.losses.reward._terms import observed_mean


def mse(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the labels that an answer has, (N, K) or (N,) -> (N,).

        sum_k m_k (s_k - y_k)^2 / sum_k m_k

    ``mask`` is 1 where a label is known. A missing label may hold anything (``nan`` too) and gives its head no
    gradient; an answer without labels gives 0. Labels of different scales are standardised before they come here.

    Source: HelpSteer (arXiv:2311.09528); stage 1 of ArmoRM (arXiv:2406.12845).
    Confirmed by: numbers worked out by hand, gradients among them.
    """
    assert scores.shape == labels.shape == mask.shape
    error = (scores - labels).masked_fill(~mask.bool(), 0)  # filled before squaring: nan times zero would be nan
    return observed_mean(error.square(), mask)
