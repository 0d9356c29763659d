"""Plackett-Luce: a whole ranking at once.

Shapes: R lists, K answers of the longest list.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plackett_luce(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of a ranking, chosen from the best answer down, (R, K) -> (R,).

        sum_i [ logsumexp({s_i} and {s_j : rank_j > rank_i}) - s_i ]

    ``ranks``: lower is better, only the order counts. ``mask`` is 1 where there is an answer; what stands elsewhere
    never matters. Tied answers are not compared with each other: each competes with those below it, as when pairs are
    made of a ranking and ties are dropped. (Breslow's rule, which lets tied answers compete, would pull their scores
    together; a tie does not say that.) A list of one tier, or of one answer, gives 0.

    Equal scores of K answers without ties give ln K!; two answers are Bradley-Terry. A sum over K - 1 choices: a longer
    ranking says more. A constant added to all scores changes nothing. Finite for any finite scores.

    Source: Plackett 1975; Luce 1959; Xia et al. 2008 (ListMLE).
    Confirmed by: numbers worked out by hand (2, 1, 0 in order: .720868); the probabilities of all orders sum to 1;
    ``bradley_terry`` for two answers.
    """
    assert scores.shape == ranks.shape == mask.shape
    known = mask.bool()
    scores = scores.masked_fill(~known, 0)  # (R, K)
    below = (ranks[:, None, :] > ranks[:, :, None]) & known[:, None, :] & known[:, :, None]  # (R, K, K): j below i
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    rivals = scores[:, None, :].masked_fill(~(below | itself), -torch.inf)
    return (rivals.logsumexp(-1) - scores).masked_fill(~known, 0).sum(-1)
