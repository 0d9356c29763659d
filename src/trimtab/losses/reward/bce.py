"""Cross-entropy: raters said yes or no.

Shapes: N answers, K attributes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trimtab.losses.reward._terms import observed_mean


def bce(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that an answer has, (N, K) or (N,) -> (N,).

        sum_k m_k [ -y_k log sigmoid(s_k) - (1 - y_k) log sigmoid(-s_k) ] / sum_k m_k

    ``labels`` are chances, 0 to 1: good or bad, or the share of raters who said good; ``scores`` are logits. ``mask``
    is 1 where a label is known. A missing label may hold anything (``nan`` too) and gives its head no gradient; an
    answer without labels gives 0. Scores of 0 give ln 2, whatever the labels. Finite for any finite scores.

    Source: Cobbe et al. 2021 (arXiv:2110.14168), a verifier on every answer's last token.
    Confirmed by: numbers worked out by hand; ``bradley_terry`` with a soft label, of s against 0.
    """
    assert scores.shape == labels.shape == mask.shape
    unknown = ~mask.bool()
    scores, labels = scores.masked_fill(unknown, 0), labels.masked_fill(unknown, 0)
    return observed_mean(-labels * F.logsigmoid(scores) - (1 - labels) * F.logsigmoid(-scores), mask)
