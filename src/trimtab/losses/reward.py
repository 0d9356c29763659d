"""Losses of reward models: preferences between two answers, and plain numbers.

Shapes: N pairs or items, K attributes (heads).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trimtab.tensors.masked import masked_mean


def bradley_terry(
    better: Tensor, worse: Tensor, *, margin: Tensor | float = 0.0, probability: Tensor | float = 1.0
) -> Tensor:
    """Negative log-likelihood that ``better`` beats ``worse``, per pair, (N,), (N,) -> (N,).

        -P log sigmoid(d - m) - (1 - P) log sigmoid(-d - m),    d = better - worse

    ``margin`` m asks whichever side wins to win by more (Llama-2: {1, 2/3, 1/3, 0} or {3, 2, 1, 0} by strength);
    ``probability`` P is a soft label, from a judge say. Both are numbers or (N,). Swapping the sides and P for 1 - P
    changes nothing, so a pair with P = 1/2 pulls towards equal scores, whatever its margin. Equal scores, m = 0: ln 2.
    Finite for any finite scores; the gradients on the two sides sum to zero.

    Source: Bradley and Terry 1952; InstructGPT (arXiv:2203.02155), eq. 1; margin: Llama 2 (arXiv:2307.09288), eq. 2;
    soft labels: RLAIF (arXiv:2309.00267).
    """
    assert better.shape == worse.shape
    difference = better - worse  # (N,)
    return -probability * F.logsigmoid(difference - margin) - (1 - probability) * F.logsigmoid(-difference - margin)


def centering(better: Tensor, worse: Tensor) -> Tensor:
    """Pull the scores' free constant to zero, per pair, (N,), (N,) -> (N,): ``(better + worse)^2``.

    An auxiliary term, weighted 0.01: a preference fixes differences only, so scores may drift.

    Source: Eisenstein et al. 2023, "Helping or Herding?" (arXiv:2312.09244).
    """
    assert better.shape == worse.shape
    return (better + worse).square()


def regression(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the labels that an item has, (N, K) or (N,) -> (N,).

        sum_k m_k (s_k - y_k)^2 / sum_k m_k

    ``mask`` is 1 where a label is observed. A missing label may hold anything (``nan`` too) and gives its head no
    gradient; an item without labels gives 0.
    """
    assert scores.shape == labels.shape == mask.shape
    error = (scores - labels).masked_fill(~mask.bool(), 0)  # filled before squaring: nan times zero would be nan
    return masked_mean(error.square(), mask, 1) if error.ndim == 2 else error.square()
