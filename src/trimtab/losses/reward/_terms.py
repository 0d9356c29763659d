"""What reward losses share.

Shapes: P pairs, R lists, N answers, K answers of a list or attributes.
"""

from __future__ import annotations

from torch import Tensor

from trimtab.tensors.masked import masked_mean


def centering(better: Tensor, worse: Tensor) -> Tensor:
    """Pull the scores' free constant to zero, per pair, (P,), (P,) -> (P,): ``(better + worse)^2``.

    An auxiliary term, weighted 0.01: a preference fixes differences only, so scores may drift.

    Source: Eisenstein et al. 2023, "Helping or Herding?" (arXiv:2312.09244).
    Confirmed by: numbers worked out by hand; TRL 1.16 (``RewardTrainer``, ``center_rewards_coefficient``).
    """
    assert better.shape == worse.shape
    return (better + worse).square()


def list_centering(scores: Tensor, mask: Tensor) -> Tensor:
    """Pull the mean of a list's scores to zero, (R, K) -> (R,): ``(2 mean)^2``, which is ``centering`` for a pair."""
    return (2 * masked_mean(scores, mask, 1)).square()


def observed_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Mean over the labels that an item has, (N, K) or (N,) -> (N,); an item without any gives 0.

    The caller keeps ``nan`` out of ``errors``: zero times ``nan`` would reach the gradient.
    """
    return masked_mean(errors, mask, 1) if errors.ndim == 2 else errors.masked_fill(~mask.bool(), 0)
